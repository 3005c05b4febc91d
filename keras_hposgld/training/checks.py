"""Checks of what is to learn, before anything is trained."""

from typing import Any

import keras

from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.samplers import Sampler


def check_owners(
    owners: list[Hyperparameter], initial_weights: Any, outer_loss: Any
) -> None:
    """Checks that there is something to learn, and something to judge it.

    Raises:
        ValueError: If not.
    """
    if not owners and not initial_weights:
        raise ValueError(
            "The model has no hyperparameters to learn. Received: a model "
            "without learnable regularizers on trainable weights, layers or "
            "losses. Put "
            "`kernel_regularizer=keras_hposgld.regularizers.LearnableL2()` "
            "into its layers, or pass `regularizer=`."
        )
    learned = [owner for owner in owners if owner.needs_outer_loss]
    if learned and outer_loss is None:
        raise ValueError(
            "`outer_loss` must be given where the loss is learned: a loss that "
            "judges itself would learn to be small. Received: "
            f"outer_loss=None and loss={learned[0]!r}. Pass what you would "
            "report, such as a cross-entropy."
        )


def check_learning_rate(owners: list[Hyperparameter], sampler: Sampler) -> None:
    """Checks that the sampler can follow the strongest pull.

    Raises:
        ValueError: If its learning rate is too large for a bound.
    """
    iterations = sampler.keras_optimizer().iterations
    rate = float(sampler.learning_rate_at(iterations, "float64"))
    for owner in owners:
        owner.check_learning_rate(rate, sampler.largest_curvature_scale())


def check_unused(hyper_optimizer: keras.optimizers.Optimizer) -> None:
    """Checks that an optimizer has no variables of its own yet.

    Raises:
        ValueError: If it has.
    """
    if hyper_optimizer.built:
        raise ValueError(
            "`hyper_optimizer` must be one that has not been used for other "
            f"variables. Received: {hyper_optimizer!r}, which is built. Make a "
            "new one."
        )
