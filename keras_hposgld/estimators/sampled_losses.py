"""The losses along a chain, of those estimators that sample."""

from typing import NamedTuple

import tensorflow as tf


class SampledLosses(NamedTuple):
    """What a chain's samples had as inner and outer objective.

    Attributes:
        inner_total: Scalar, sum of the inner objective over the samples.
        outer: Tensor `(num_samples,)`, the outer objective of each.
    """

    inner_total: tf.Tensor
    outer: tf.Tensor

    @classmethod
    def zero(cls, num_samples: int, dtype) -> "SampledLosses":
        return cls(tf.zeros([], dtype), tf.zeros([num_samples], dtype))

    def add(self, inner, outer, number) -> "SampledLosses":
        """Counts sample `number`, from 1; during the burn-in that is below."""
        dtype = self.inner_total.dtype
        counts = tf.cast(number > 0, dtype)
        # What the burn-in writes into the first place, sample 1 overwrites.
        place = tf.maximum(number - 1, 0)
        return SampledLosses(
            self.inner_total + counts * tf.cast(inner, dtype),
            tf.tensor_scatter_nd_update(
                self.outer, [[place]], [tf.cast(outer, dtype)]
            ),
        )

    @property
    def inner_mean(self) -> tf.Tensor:
        return self.inner_total / self.outer.shape[0]

    @property
    def outer_mean(self) -> tf.Tensor:
        return tf.reduce_mean(self.outer)
