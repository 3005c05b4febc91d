"""Checks of what is to learn, before anything is trained."""

import numbers
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld.core.checks import check_count
from keras_hposgld.estimators import HypergradientEstimator
from keras_hposgld.hyperparameters.batch_weights import BatchWeights
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
from keras_hposgld.samplers import Sampler
from keras_hposgld.samplers import SGLD

MAX_STEPS_CHECKED = 2000


def given_or_default(optimizer: Any, hypergradient: Any) -> Any:
    """The sampler that `compile` was given, or the one for its estimator.

    Raises:
        TypeError: If none was given, and the estimator has no usual one.
    """
    if optimizer is not None:
        return optimizer
    if not estimators.get(hypergradient).needs_outer:
        return SGLD("auto")
    raise TypeError(
        "`optimizer` must be given, the sampler of the inner chain. Received: "
        f"optimizer=None with hypergradient={hypergradient!r}. Pass "
        '`keras_hposgld.SGLD(learning_rate)` or an optimizer such as "adam".'
    )


def check_owners(
    owners: list[Hyperparameter],
    initial_weights: Any,
    outer_loss: Any,
    estimator: HypergradientEstimator,
) -> None:
    """Checks that there is something to learn, and something to judge it.

    Without an outer objective the training data judge, and what they cannot
    judge is refused elsewhere.

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
    shrunk = [owner for owner in owners if owner.shrinkage]
    if shrunk and initial_weights:
        raise ValueError(
            "`shrinkage` must be 0 where initial weights are learned from "
            "tasks: the prior is weighed against the number of outer examples, "
            f"and tasks are not examples. Received: {shrunk[0]!r} with "
            f"shrinkage={shrunk[0].shrinkage}. Pass `shrinkage=0.0`."
        )
    learned = [owner for owner in owners if owner.needs_outer_loss]
    if learned and outer_loss is None and estimator.needs_outer:
        raise ValueError(
            "`outer_loss` must be given where the loss is learned: a loss that "
            "judges itself would learn to be small. Received: "
            f"outer_loss=None and loss={learned[0]!r}. Pass what you would "
            "report, such as a cross-entropy."
        )


def check_judged(estimator: HypergradientEstimator) -> None:
    """Checks that an estimator differentiates the outer loss.

    All ways of learning but `BilevelModel` ask for that.

    Raises:
        ValueError: If it learns from the inner objective alone.
    """
    if not estimator.needs_outer:
        raise ValueError(
            "The estimator must be one that differentiates the outer loss. "
            f"Received: {estimator!r}, which has no use for it. Train by "
            "`keras_hposgld.BilevelModel`, whose `fit` serves it, or use "
            '"hpo_sgld".'
        )


def check_learning_rate(
    owners: list[Hyperparameter],
    sampler: Sampler,
    estimator: HypergradientEstimator | None = None,
) -> None:
    """Checks that the sampler can follow the strongest pull.

    Args:
        owners: The objects that own the hyperparameters.
        sampler: `Sampler`.
        estimator: `HypergradientEstimator`, where it is known.

    Raises:
        ValueError: If its learning rate is too large for a bound.
    """
    iterations = sampler.keras_optimizer().iterations
    rate = float(sampler.learning_rate_at(iterations, "float64"))
    for owner in _pulling(owners, sampler, estimator):
        owner.check_learning_rate(rate, sampler.largest_curvature_scale())


def _pulling(owners: list, sampler: Sampler, estimator: Any) -> list:
    """Those whose pull an explicit step has to follow."""
    if not sampler.solves_quadratic:
        return owners
    has_latents = estimator is not None and not estimator.needs_outer
    return [
        owner
        for owner in owners
        if not (owner.is_quadratic or (has_latents and owner.is_mixture))
    ]


def check_schedule(
    owners: list[Hyperparameter],
    sampler: Sampler,
    steps: range,
    estimator: HypergradientEstimator | None = None,
) -> None:
    """Checks the same for a learning rate that follows a schedule.

    Args:
        owners: The objects that own the hyperparameters.
        sampler: `Sampler`. A rate that does not follow a schedule is left to
            `check_learning_rate`.
        steps: The inner steps to come. Of more than 2000 as many are looked at,
            the first and the last among them.
        estimator: `HypergradientEstimator`, where it is known.

    Raises:
        ValueError: If its learning rate becomes too large for a bound.
    """
    # Private to Keras, whose `learning_rate` is the value now.
    rate = getattr(sampler.keras_optimizer(), "_learning_rate", None)
    is_schedule = isinstance(
        rate, keras.optimizers.schedules.LearningRateSchedule
    )
    if not (is_schedule and owners and steps):
        return
    number = min(len(steps), MAX_STEPS_CHECKED)
    chosen = np.linspace(steps[0], steps[-1], number).round().astype("int64")

    # A schedule takes one step at a time.
    def rate_at(step: tf.Tensor) -> tf.Tensor:
        return sampler.learning_rate_at(step, "float64")

    traced = tf.function(rate_at, autograph=False)
    try:
        values = [float(traced(tf.constant(step))) for step in chosen]
    except (TypeError, AttributeError, NotImplementedError):
        # One that computes with numbers, for a `fit` that runs eagerly.
        values = [float(rate_at(tf.constant(step))) for step in chosen]
    largest = int(np.argmax(values))
    for owner in _pulling(owners, sampler, estimator):
        try:
            owner.check_learning_rate(
                float(values[largest]), sampler.largest_curvature_scale()
            )
        except ValueError as error:
            raise ValueError(
                f"{error} The schedule of the learning rate comes to this in "
                f"inner step {chosen[largest]}."
            ) from error


def check_fit(
    x: Any,
    outer_data: Any,
    batch_size: Any,
    outer_batch_size: Any,
    steps_per_epoch: Any,
) -> None:
    """Checks arguments of `BilevelModel.fit`; see there.

    Raises:
        ValueError: If a number is not an integer, or `steps_per_epoch` is not
            above zero.
    """
    if steps_per_epoch is not None:
        check_count("steps_per_epoch", steps_per_epoch, 1)
    for name, value in (
        ("batch_size", batch_size),
        ("outer_batch_size", outer_batch_size),
    ):
        # The data refuse integers that are too small, each kind by itself.
        if not isinstance(value, numbers.Integral | None):
            check_count(name, value, 1)
    is_pair = isinstance(outer_data, tuple | list) and len(outer_data)
    outer_inputs = outer_data[0] if is_pair else outer_data
    if x is not None and outer_inputs is x:
        warnings.warn(
            "`outer_data` holds the inputs of the training data: "
            "hyperparameters that are judged by the examples that the weights "
            "are trained on learn to regularize as little as they can. Pass "
            "other examples, or `outer_split=0.2`.",
            stacklevel=3,
        )


def checked_folds(
    outer_folds: Any,
    outer_split: Any,
    example_weights: Any,
    *,
    outer_data: Any = None,
    strategy: Any = None,
) -> int | None:
    """The number of folds that is meant, `None` for none.

    Args:
        outer_folds: As in `BilevelModel`.
        outer_split: Float or `None`.
        example_weights: `ExampleWeights` or `None`.
        outer_data: As in `BilevelModel.fit`.
        strategy: `tf.distribute.Strategy` with several replicas, or `None`.

    Raises:
        ValueError: If it is not an integer above 1, or does not go with one of
            the others.
    """
    if outer_folds is None:
        return None
    number = check_count("outer_folds", outer_folds, 2)
    for name, value, why in (
        ("outer_data", outer_data, "each example is an outer one in one fold"),
        ("outer_split", outer_split or None, "folds are splits already"),
        (
            "example_weights",
            example_weights,
            "an example has no weight of its own where it is an outer one",
        ),
        ("strategy", strategy, "folds run on one replica"),
    ):
        if value is not None:
            what = "several replicas" if name == "strategy" else f"`{name}`"
            raise ValueError(
                f"`outer_folds` cannot be combined with {what}: {why}. "
                f"Received: outer_folds={number} and {name}={value!r:.80}. "
                "Leave out one of them."
            )
    return number


def check_learnable(regularizer: Any, example_weights: Any) -> None:
    """Checks what `BilevelModel` is to learn beside what its layers own.

    Raises:
        TypeError: If one of them is of a kind that cannot be learned.
    """
    if not isinstance(regularizer, WeightHyperparameter | None):
        raise TypeError(
            "`regularizer` must be an instance of a learnable regularizer. "
            f"Received: regularizer={regularizer!r}. Pass "
            "`keras_hposgld.regularizers.LearnableL2()`, say."
        )
    if not isinstance(example_weights, BatchWeights | None):
        raise TypeError(
            "`example_weights` must be an instance of "
            "`keras_hposgld.ExampleWeights` or `SourceWeights`. "
            f"Received: example_weights={example_weights!r}."
        )


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
