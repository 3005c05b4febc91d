"""What keeps numbers that are not finite away from the learned state."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class UpdateGuard(keras.layers.Layer):
    """Runs an update only if all that it rests on is finite.

    It counts the updates that were skipped in a row, and remembers what was
    the first quantity not to be finite in the last of them.

    Attributes:
        max_skipped_updates: Integer: so many in a row are too many.
    """

    def __init__(self) -> None:
        super().__init__(name="update_guard", trainable=False)
        self.max_skipped_updates = 10
        self.names: list[str] = []
        self.skipped_in_a_row = self._counter("skipped_in_a_row")
        self.first_not_finite = self._counter("first_not_finite")

    def _counter(self, name: str) -> keras.Variable:
        return self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int32",
            trainable=False,
            name=name,
        )

    def run_if_finite(
        self, update: Callable, quantities: list[tuple[str, tf.Tensor]]
    ) -> tf.Tensor:
        """Calls `update()` if every entry of every tensor is finite.

        Args:
            update: Function without arguments that assigns variables.
            quantities: Pairs of a name and a tensor, causes before effects.

        Returns:
            Scalar float tensor: 1 if the update was skipped, else 0.
        """
        self.names = [name for name, _ in quantities]
        finite = _finite(quantities)
        is_finite = tf.reduce_all(finite)

        def run() -> None:
            update()
            self.skipped_in_a_row.assign(0)

        def skip() -> None:
            self.skipped_in_a_row.assign_add(1)
            self.first_not_finite.assign(
                tf.argmin(tf.cast(finite, tf.int32), output_type=tf.int32)
            )

        tf.cond(is_finite, run, skip)
        return 1.0 - tf.cast(is_finite, tf.float32)

    def cause(self) -> str:
        """What was the first number not to be finite in the last such case."""
        return self.names[int(self.first_not_finite.numpy())]

    def raise_if_too_many(self) -> None:
        """Raises once `max_skipped_updates` in a row were skipped."""
        skipped = int(self.skipped_in_a_row.numpy())
        if skipped < self.max_skipped_updates:
            return
        name = self.cause()
        self.skipped_in_a_row.assign(0)
        raise RuntimeError(
            f"`max_skipped_updates` was reached: {skipped} outer iterations "
            "in a row gave a number that is not finite. Received: first in "
            f"{name}. The hyperparameters are still those before the first of "
            "them, and so are the weights if it is a number of the inner "
            "level. Lower the learning rate of the sampler, bound the "
            "hyperparameters (`learning_rate * max_value` must stay below 1 in "
            "every step) or clip the gradients (`SGLD(clipnorm=...)`), "
            "and look for a division or logarithm in that quantity."
        )


def all_finite(quantities: list[tuple[str, tf.Tensor]]) -> tf.Tensor:
    """Whether every entry of every tensor is finite, a boolean tensor."""
    return tf.reduce_all(_finite(quantities))


def _finite(quantities: list[tuple[str, tf.Tensor]]) -> tf.Tensor:
    return tf.stack(
        [tf.reduce_all(tf.math.is_finite(tensor)) for _, tensor in quantities]
    )


def named(what: str, variables: list, values: list) -> list:
    """Pairs of the name of a variable and a tensor that belongs to it."""
    return [
        (f"{what} {variable.path!r}", value)
        for variable, value in zip(variables, values, strict=True)
    ]


def causes_of(problem: Any, estimator: Any, estimate: Any) -> tuple[list, list]:
    """What the hypergradient of a chain rests on, causes first.

    Args:
        problem: `KerasProblem`.
        estimator: `HypergradientEstimator`.
        estimate: Its `Estimate`.

    Returns:
        Pairs of a name and a tensor: of the inner level, and of the outer one.
    """
    outer, solved = [], []
    if estimate.outer_loss is not None:
        outer = [("the outer objective", estimate.outer_loss)]
    if estimator.residual_name is not None:
        solved = [(estimator.residual_name, estimate.residual)]
    return (
        [
            ("the inner objective", estimate.inner_loss),
            *named("the weight", problem.weights, estimate.params),
        ],
        [*outer, *solved],
    )


class StopOnNonFinite(keras.callbacks.Callback):
    """Ends `BilevelModel.fit` with an error when its guard has had enough."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.model.outer_level.guard.raise_if_too_many()
