"""The Monte Carlo error of a chain's estimate, by the method of batch means.

Neighboring steps of a chain are correlated, so their variance says nothing
about the error of their sum. The sums of long batches are nearly independent,
and their variance does. With N contributions there are about sqrt(N) batches.

An estimate is a weighted sum of two series that are stationary in a long chain,

    h = sum_m w_m x_m + s_m y_m,

with weights that are known beforehand: x is what a step adds through the
weights of the model, y the direct derivative. The sums of the batches deviate
by `sum w (x - mean x) + s (y - mean y)`. (A running sum, such as HPO-SGLD's g,
drifts and is not stationary: the batch means of g itself would measure the
drift.)

What is followed is one number per step: its component along the hypergradient
so far. So the error is that of the hypergradient's length, to first order, and
costs no further vector. For short chains it is a lower bound.

Reference:
    Flegal and Jones, "Batch means and spectral variance estimators in Markov
    chain Monte Carlo", Annals of Statistics 2010.
"""

import math
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class BatchMeans(NamedTuple):
    """Sums over the contributions so far.

    All values are shifted by the first one, so that a small spread around a
    large mean does not cancel in float32.
    """

    first: tf.Tensor  # (2,): the first x and y
    totals: tf.Tensor  # (2,): sums of x and y, shifted
    batches: tf.Tensor  # (number of batches,): weighted sums, shifted

    @classmethod
    def zero(cls, number: int, dtype: Any) -> "BatchMeans":
        """Before the first contribution.

        Args:
            number: Integer, how many contributions there will be.
            dtype: Floating-point dtype.
        """
        num_batches = len(_sizes(number))
        two = tf.zeros([2], dtype)
        return cls(two, two, tf.zeros([num_batches], dtype))

    def add(
        self,
        values: Any,
        weights: Any,
        is_first: tuple,
        position: Any,
        number: int,
    ) -> "BatchMeans":
        """Adds the contribution of a step.

        Args:
            values: Pair of scalar tensors, x and y.
            weights: Pair of scalar tensors, w and s. A value without weight
                is not part of its series.
            is_first: Pair of boolean tensors: whether a series begins.
            position: Integer tensor: which contribution it is, from 0. One
                below 0 has no weight.
            number: Integer, how many there will be.
        """
        dtype = self.totals.dtype
        values = tf.stack([tf.cast(value, dtype) for value in values])
        weights = tf.stack([tf.cast(weight, dtype) for weight in weights])
        first = tf.where(tf.stack(is_first), values, self.first)
        shifted = tf.where(weights != 0, values - first, tf.zeros_like(values))
        sizes = _sizes(number)
        batch = tf.minimum(tf.maximum(position, 0) // sizes[0], len(sizes) - 1)
        return BatchMeans(
            first,
            self.totals + shifted,
            tf.tensor_scatter_nd_add(
                self.batches, [[batch]], [tf.reduce_sum(weights * shifted)]
            ),
        )

    def standard_error(
        self, weights: np.ndarray, num_samples: int
    ) -> tf.Tensor | None:
        """Standard error of h; `None` where it rests on one sample.

        Args:
            weights: Array `(number, 2)`, w and s of every contribution, as
                they were given to `add`.
            num_samples: Integer, by which h is divided at the end.
        """
        number = len(weights)
        if num_samples == 1:
            return None
        ends = np.cumsum([0, *_sizes(number)[:-1]])
        expected = np.add.reduceat(weights, ends, axis=0)
        counts = np.maximum((weights != 0).sum(axis=0), 1)
        dtype = self.totals.dtype
        means = self.totals / tf.constant(counts, dtype)
        deviations = self.batches - tf.linalg.matvec(
            tf.constant(expected, dtype), means
        )
        num_batches = len(ends)
        variance = tf.reduce_sum(deviations**2) * (
            num_batches / (num_batches - 1)
        )
        return tf.sqrt(variance) / num_samples


def _sizes(number: int) -> list[int]:
    """The sizes of the batches: equal ones, and the last takes the rest."""
    num_batches = min(number, max(2, math.isqrt(number)))
    size = number // num_batches
    return [size] * (num_batches - 1) + [number - (num_batches - 1) * size]
