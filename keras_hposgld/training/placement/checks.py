"""Refuses what cannot run on the replicas of a strategy."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.estimators.estimator import HypergradientEstimator


def check_scope(
    variables: list,
    made_under: tf.distribute.Strategy | None,
    strategy: tf.distribute.Strategy | None,
) -> None:
    """Checks that variables were made in the scope of the strategy.

    Args:
        variables: List of `keras.Variable`s.
        made_under: The strategy that their values have to know, `None` for
            plain TensorFlow variables.
        strategy: The strategy of the training, named in the message.

    Raises:
        ValueError: If a variable was made elsewhere.
    """
    for variable in variables:
        found = getattr(variable.value, "distribute_strategy", None)
        if found is not made_under:
            scope = f"under {found}" if found else "outside of any"
            raise ValueError(
                "The model must be made in the scope of the strategy that it "
                f"is trained under. Received: {variable.path!r}, made {scope}, "
                f"and {strategy} for the training. Build and compile inside "
                "of one `with strategy.scope():`."
            )


def check_estimator(
    estimator: HypergradientEstimator, num_replicas: int
) -> None:
    """Checks that an estimator can average over the replicas.

    Raises:
        ValueError: If it cannot, and there are several.
    """
    if num_replicas > 1 and not estimator.serves_replicas:
        raise ValueError(
            f"`{type(estimator).__name__}` cannot run on several replicas: "
            "its `serves_replicas` does not say that it averages what it takes "
            f"from a batch. Received: {num_replicas} replicas. Use an "
            'estimator of the package, such as "hpo_sgld".'
        )


def check_compilation(
    jit_compile: Any, steps_per_execution: int, num_replicas: int
) -> None:
    """Checks the arguments of `compile` that say how a step is compiled.

    Raises:
        ValueError: If XLA or several steps at a time are asked for.
    """
    if jit_compile is True:
        raise ValueError(
            "`jit_compile=True` compiles for one device, without a strategy "
            "or under `OneDeviceStrategy`. Received: "
            f"jit_compile=True and {num_replicas} replicas. "
            'Use "auto" or False.'
        )
    if steps_per_execution != 1:
        raise ValueError(
            "`steps_per_execution` must be 1 under a strategy: each outer "
            "iteration is one call, and long enough. "
            f"Received: steps_per_execution={steps_per_execution}."
        )


def check_version() -> None:
    """Checks that Keras takes data that are distributed.

    Raises:
        ValueError: If it does not.
    """
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    if version < (3, 9):
        raise ValueError(
            "Training on several replicas needs Keras 3.9 or newer, whose "
            "`fit` takes the data of a strategy. Received: Keras "
            f"{keras.__version__}."
        )


def check_divisible(batch_sizes: dict, num_replicas: int) -> None:
    """Checks that batches can be divided among the replicas.

    Args:
        batch_sizes: Dictionary from the name of the data to the batch size.
        num_replicas: Integer.

    Raises:
        ValueError: If one cannot.
    """
    for name, size in batch_sizes.items():
        if size % num_replicas:
            raise ValueError(
                f"The batches of `{name}` must be divisible by the number of "
                f"replicas. Received: batches of {size} examples "
                f"and {num_replicas} replicas. Use a batch size of "
                f"{max(size // num_replicas, 1) * num_replicas}, and data "
                "that are not fewer."
            )


def refuse_recording(num_replicas: int) -> None:
    """Refuses a callback that would record the batches of `fit`.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        "`inner_data` must be given under a strategy: each replica "
        "sees but its share of a batch. Received: inner_data=None and "
        f"{num_replicas} replicas. Pass the training data."
    )
