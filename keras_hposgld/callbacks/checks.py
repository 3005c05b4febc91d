"""What a callback that learns in a plain `fit` cannot serve, or has to say."""

import warnings
import weakref
from typing import Any

import keras

from keras_hposgld.callbacks.recording_step import RecordingStep
from keras_hposgld.hyperparameters.discovery import is_kept_by
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
from keras_hposgld.samplers import from_keras
from keras_hposgld.training.learning_step import LearningStep
from keras_hposgld.training.step_of_fit import plain

# The callbacks that learn in the `fit` of a model, the latest of them.
_learning: Any = weakref.WeakKeyDictionary()


def check_model(model: keras.Model) -> None:
    """Checks that a model is a plain one.

    Raises:
        TypeError: If it learns its hyperparameters by itself.
    """
    if hasattr(model, "outer_level"):
        raise TypeError(
            "`LearnHyperparameters` belongs to the `fit` of a plain Keras "
            f"model. Received: {model!r}, which learns its hyperparameters "
            "by itself."
        )


def why_not_in_training(model: keras.Model) -> str | None:
    """Why the steps of a model's `fit` cannot be those of a chain, if so."""
    step = vars(model).get("train_step")
    if type(model).train_step is not keras.Model.train_step or not isinstance(
        step, RecordingStep | LearningStep | None
    ):
        return "the model has a `train_step` of its own"
    try:
        from_keras.of_training(plain(model.optimizer))
    except ValueError as error:
        return str(error)
    return None


def check_chain_of_fit(model: keras.Model) -> None:
    """Checks that the steps of a model's `fit` can be those of chains.

    Args:
        model: Compiled `keras.Model`.

    Raises:
        ValueError: If they cannot.
    """
    reason = why_not_in_training(model)
    if reason is not None:
        raise ValueError(
            f'`chain="training"` cannot serve this model: {reason} '
            f'Received: model={model!r}. Pass `chain="apart"`.'
        )
    if not isinstance(model.steps_per_execution, int):
        raise ValueError(
            "`steps_per_execution` must be a number where hyperparameters are "
            f"learned. Received: {model.steps_per_execution!r}."
        )


def check_alone(callback: keras.callbacks.Callback) -> None:
    """Checks that no other callback learns in the same steps.

    Args:
        callback: `LearnHyperparameters`, when its `fit` begins.

    Raises:
        ValueError: If one of the two has its chains in the training.
    """
    # Keras gives one and the same dictionary to all callbacks of a `fit`.
    others = _learning.setdefault(callback.model, [])
    others[:] = [
        other
        for other in others
        if other() not in (None, callback) and other().params is callback.params
    ]
    kinds = [callback.chain, *(other().chain for other in others)]
    if others and "training" in kinds:
        raise ValueError(
            "Only one callback may learn from the steps of a `fit`. Received: "
            f"{len(kinds)} of them, with chain={kinds}. One finds all "
            'hyperparameters of the model; or pass `chain="apart"` to each.'
        )
    others.append(weakref.ref(callback))


def check_decay(model: keras.Model, chain: str) -> None:
    """Checks that no weight has a learned decay that nobody would apply.

    Args:
        model: Built `keras.Model`.
        chain: `"training"`, where it is applied, or `"apart"`.

    Raises:
        ValueError: If one has.
    """
    for weight in model.trainable_variables if chain == "apart" else ():
        if getattr(weight.regularizer, "decays", False):
            raise ValueError(
                "`LearnableWeightDecay` cannot be learned by chains apart: "
                "the optimizer of `fit` does not apply it. Received: the "
                f'weight {weight.path!r}. Use `chain="training"`, '
                "`keras_hposgld.BilevelModel`, or `LearnableL2`."
            )


def warn_that_no_chain_ran(chains: Any, num_batches: int) -> None:
    """Warns that nothing was learned.

    Args:
        chains: `ChainsApart` or `ChainsInTraining`.
        num_batches: Integer, those of all fits.
    """
    warnings.warn(
        "No chain ran in this `fit`, so that no hyperparameter was learned. "
        f"Received: every={chains.every}, warmup_batches="
        f"{chains.warmup_batches} and {num_batches} batches; a chain takes "
        f"{chains.num_steps} inner batches. Lower `every` or `batch_size`, or "
        "train for more epochs.",
        stacklevel=3,
    )


def warn_of_unsaved(model: keras.Model, owners: list, regularizer: Any) -> None:
    """Warns of strengths that are not saved with the model.

    Args:
        model: `keras.Model`.
        owners: The objects that own its hyperparameters.
        regularizer: The one that was passed to the callback; its docstring
            says that it is not saved.
    """
    for owner in owners:
        is_loose = isinstance(owner, WeightHyperparameter) and not (
            owner is regularizer or is_kept_by(model, owner)
        )
        if is_loose:
            paths = list(owner.hyperparameter_values())
            warnings.warn(
                f"The learned strengths of {paths} are not going to be "
                "saved with the model: no layer holds the regularizer. Keep "
                "it on an attribute of its layer, or train a "
                "`keras_hposgld.BilevelModel`, which saves it.",
                stacklevel=3,
            )
