"""The two losses along a chain of samples."""

from typing import Any
from typing import NamedTuple

import tensorflow as tf


class Losses(NamedTuple):
    """What the samples so far had for losses.

    Attributes:
        inner_total: Scalar tensor, the sum of the inner objective.
        outer: Tensor `(num_samples,)`, the outer objective of each; `()` where
            it is not asked for.
    """

    inner_total: tf.Tensor
    outer: Any

    @classmethod
    def zero(cls, num_samples: int, has_outer: bool, dtype: Any) -> "Losses":
        """Before the first sample."""
        outer = tf.zeros([num_samples], dtype) if has_outer else ()
        return cls(tf.zeros([], dtype), outer)

    def add(self, inner: tf.Tensor, outer: Any, number: Any) -> "Losses":
        """Adds those of a step.

        Args:
            inner: Scalar tensor.
            outer: Scalar tensor, `None` where it is not asked for.
            number: Integer tensor: which sample it is, from 0; below 0 it is
                none.
        """
        dtype = self.inner_total.dtype
        counts = tf.cast(number >= 0, dtype)
        total = self.inner_total + counts * tf.cast(inner, dtype)
        if outer is None:
            return Losses(total, self.outer)
        # What the burn-in writes into the first place, sample 1 overwrites.
        place = tf.maximum(number, 0)
        return Losses(
            total,
            tf.tensor_scatter_nd_update(
                self.outer, [[place]], [tf.cast(outer, dtype)]
            ),
        )

    def fields(self, num_samples: int) -> dict:
        """What an estimate says of them."""
        has_outer = tf.is_tensor(self.outer)
        return {
            "inner_loss": self.inner_total / num_samples,
            "outer_loss": tf.reduce_mean(self.outer) if has_outer else None,
            "outer_losses": self.outer if has_outer else None,
        }
