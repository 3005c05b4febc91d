"""What a Keras model must be for its training data to judge it by themselves.

An estimator that needs no outer objective takes exp(-L_T / tau) for the
posterior of the weights: a likelihood of the training data, times a prior whose
normalizer is known. So the loss of an example is minus its log-likelihood, the
penalties of the weights are a prior, and L_T is a function of the weights
alone. What can be seen to be something else is refused here.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.estimators import HypergradientEstimator
from keras_hposgld.hyperparameters.addresses import all_layers
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
from keras_hposgld.regularizers import LearnableL2
from keras_hposgld.training.keras_problem import layer_variables

# Of Keras's own losses. In each axis but those that it sums over it is a mean.
OVER_CLASSES = (
    "categoricalcrossentropy",
    "sparsecategoricalcrossentropy",
    "kldivergence",
)
OF_NUMBERS = ("binarycrossentropy", "poisson")
LIKELIHOODS = (*OVER_CLASSES, *OF_NUMBERS, "ctc")
MEANS = ("sum_over_batch_size", "mean")
# A batch of arrays, unless the user says so: all examples, if they are not too
# many. Gradients without noise allow large steps and a momentum.
LARGE_BATCH = 2048
WITH_OUTER_DATA = 'an estimator that learns on outer data, such as "hpo_sgld"'


def refuse_outer_data(
    estimator: HypergradientEstimator, **arguments: Any
) -> None:
    """Refuses what is for an outer objective, where there is none.

    Args:
        estimator: `HypergradientEstimator`.
        **arguments: Of `fit`, by their names; `None` or 0 if not given.

    Raises:
        ValueError: If one is given.
    """
    for name, value in arguments.items():
        if value is None or (isinstance(value, float | int) and not value):
            continue
        raise ValueError(
            f"`{name}` cannot be given with `{type(estimator).__name__}`, "
            "which learns from the training data alone. Received: "
            f"{name}={value!r:.80}. Leave it out: all examples belong to `x`."
        )


def give_priors(learner: keras.Model) -> None:
    """Gives a learner without learned strengths some: a prior of its weights.

    Each of the trainable weights that has no regularizer gets one, but for
    those that scale what they are multiplied by, which are not about zero.

    Args:
        learner: `BilevelModel`, built.
    """
    owners = learner.find_hyperparameters()
    if learner.regularizer is None and not any(
        isinstance(owner, WeightHyperparameter) for owner in owners
    ):
        learner.regularizer = LearnableL2(granularity="auto")
        learner.filter = lambda weight: not weight.name.endswith("gamma")


def check_density(learner: keras.Model, owners: list[Hyperparameter]) -> None:
    """Checks what can be seen before there are data.

    Args:
        learner: `BilevelModel`, built and compiled.
        owners: The objects that own its hyperparameters.

    Raises:
        ValueError: If a hyperparameter is part of no prior or likelihood; if
            the loss is none; if a weight has a constraint.
    """
    estimator = learner.hypergradient
    name = type(estimator).__name__
    refuse_outer_data(estimator, outer_loss=learner.outer_level.outer_loss)
    for owner in owners:
        if owner.log_normalizer(1.0) is None:
            raise ValueError(
                f"`{name}` learns what a prior of the weights or a likelihood "
                "depends on, and nothing else: it would go to where the loss "
                f"is smallest. Received: {owner!r}. Use `LearnableL2`, "
                "`LearnableL1` or `LearnableL1L2` for strengths, also in the "
                "place of `LearnableWeightDecay`, and `LearnableGaussianLoss` "
                f"for the noise of a regression; or {WITH_OUTER_DATA}."
            )
    clipping = [
        name
        for name in ("clipnorm", "clipvalue", "global_clipnorm")
        if getattr(learner.optimizer, name, None) is not None
    ]
    if clipping:
        raise ValueError(
            f"`{clipping[0]}` cannot be given with `{name}`: a chain of "
            "clipped gradients does not sample the posterior. Received: "
            f"{clipping[0]}={getattr(learner.optimizer, clipping[0])}. Leave "
            "it out, and take a smaller learning rate."
        )
    constrained = [
        weight.path
        for weight in learner.trainable_variables
        if weight.constraint is not None
    ]
    if constrained:
        raise ValueError(
            f"`{name}` needs weights without a constraint, which would cut "
            f"off a part of their prior. Received: {constrained[:5]}. Leave "
            f"the constraint out, or use {WITH_OUTER_DATA}."
        )
    _check_loss(name, **learner.plain_compile_arguments())


def _check_loss(
    name: str, loss: Any = None, loss_weights: Any = None, **others: Any
) -> None:
    if loss_weights is not None:
        raise ValueError(
            f"`loss_weights` cannot be given with `{name}`: they change the "
            "likelihood. Received: "
            f"loss_weights={loss_weights!r:.80}. Leave them out."
        )
    for part in _losses(loss):
        if _of_keras(part) not in (*LIKELIHOODS, None):
            raise ValueError(
                f"`loss` must be minus a log-likelihood for `{name}`. "
                f"Received: loss={loss!r:.80}, which says nothing of the "
                "noise. Use `keras_hposgld.losses.LearnableGaussianLoss()` "
                "for a regression, and a cross-entropy for classes. A loss "
                "of your own is taken for minus the log-likelihood of an "
                "example."
            )
        reduction = getattr(part, "reduction", MEANS[0])
        if reduction not in MEANS:
            raise ValueError(
                f"The loss must be a mean over the batch for `{name}`, which "
                "the temperature makes the sum over all examples of. Received: "
                f"loss={loss!r:.80} with reduction={reduction!r}. Use "
                f"`reduction={MEANS[0]!r}`."
            )


def _losses(loss: Any) -> list:
    parts = [part for part in keras.tree.flatten(loss) if part is not None]
    return [keras.losses.get(part) for part in parts]


def loss_of(learner: keras.Model) -> tuple[Any, str | None]:
    """The loss that a learner was compiled with, if it is one.

    Args:
        learner: `BilevelModel`, compiled.

    Returns:
        `keras.losses.Loss` or a function, and its name if it is one of
        Keras's, in lower case and without underscores; or `None` for either.
    """
    losses = _losses(learner.plain_compile_arguments()["loss"])
    if len(losses) != 1:
        return None, None
    return losses[0], _of_keras(losses[0])


def _of_keras(loss: Any) -> str | None:
    """The name of one of Keras's own losses, in one spelling; else `None`."""
    kind = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    if getattr(kind, "__module__", "").split(".")[0] != "keras":
        return None
    return kind.__name__.replace("_", "").lower()


def check_on_batch(
    learner: keras.Model, batch: Any, has_temperature: bool
) -> None:
    """Checks what the layers do with data, before the first step.

    Args:
        learner: `BilevelModel`, built and compiled.
        batch: The first one of the training data.
        has_temperature: Whether the user has given that of the sampler, and
            so has counted.

    Raises:
        ValueError: If layers draw random numbers or keep a state in training;
            if there are several outputs; if the loss of an example is a mean.
    """
    name = type(learner.hypergradient).__name__
    x, *_ = keras.utils.unpack_x_y_sample_weight(batch)
    is_training = learner.outer_level.layer_state == "carried"
    with keras.StatelessScope() as scope:
        y_pred = learner.model(x, training=is_training)
    changed = [
        variable
        for variable in layer_variables(learner.model)
        if scope.get_current_value(variable) is not None
    ]
    if changed and is_training:
        raise ValueError(
            f"`{name}` needs a model whose loss is one function of the "
            "weights, without layers that draw random numbers or keep a state "
            f"in training. Received: {_holders(learner.model, changed)}. Leave "
            "them out, with LayerNormalization for BatchNormalization, or "
            'pass `layer_state="frozen"` to `compile`, which runs the model as '
            f"in inference; or use {WITH_OUTER_DATA}."
        )
    outputs = keras.tree.flatten(y_pred)
    losses = _losses(learner.plain_compile_arguments()["loss"])
    if len(outputs) > 1 or len(losses) > 1:
        raise ValueError(
            f"`{name}` serves models with one output and one loss. Received: "
            f"{len(outputs)} outputs and {len(losses)} losses. Use one loss "
            f"for all, of one output; or {WITH_OUTER_DATA}."
        )
    number = _number_of_terms(losses, outputs[0])
    if number > 1 and not has_temperature:
        raise ValueError(
            f"The loss of an example is a mean over {number} numbers, and "
            f"`{name}` needs their sum. Received: loss={losses[0]!r:.80} and "
            f"predictions of shape {tuple(outputs[0].shape)}. Pass the "
            "temperature yourself: "
            f"`SGLD(temperature=1 / (n * {number}))` for n examples."
        )


def _number_of_terms(losses: list, y_pred: tf.Tensor) -> int:
    """Over how many numbers of an example one of Keras's losses is a mean."""
    kind = _of_keras(losses[0]) if losses else None
    if kind in OF_NUMBERS:
        return math.prod(y_pred.shape[1:])
    return math.prod(y_pred.shape[1:-1]) if kind in OVER_CLASSES else 1


def _holders(model: keras.Model, variables: list) -> str:
    """Which layers variables belong to: the innermost ones."""
    layers = sorted(all_layers(model), key=lambda layer: len(layer.variables))
    held = {
        next(
            f"{layer.name!r} of type {type(layer).__name__}"
            for layer in layers
            if any(own is variable for own in layer.variables)
        ): None
        for variable in variables
    }
    return ", ".join(list(held)[:5])
