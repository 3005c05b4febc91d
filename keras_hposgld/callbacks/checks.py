"""What a callback that learns in a plain `fit` cannot serve, or has to say."""

import warnings
from typing import Any

import keras

from keras_hposgld.hyperparameters.discovery import is_kept_by
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter


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


def check_decay(model: keras.Model) -> None:
    """Checks that no weight has a learned decay, which nobody would apply.

    Raises:
        ValueError: If one has.
    """
    for weight in model.trainable_variables:
        if getattr(weight.regularizer, "decays", False):
            raise ValueError(
                "`LearnableWeightDecay` cannot be learned by this callback: "
                "the optimizer of `fit` does not apply it. Received: the "
                f"weight {weight.path!r}. Use `keras_hposgld.BilevelModel`, "
                "or `LearnableL2`."
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
