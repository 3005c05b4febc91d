"""The Monte Carlo error of a chain's mean, by the method of batch means.

Neighbouring samples of a chain are correlated, so their variance says nothing
about the error of their mean. The means of long batches are nearly independent,
and their variance does. With M samples there are about sqrt(M) batches.

What is followed is one number a sample: its component along the hypergradient
so far. So the error is that of the hypergradient's length, to first order, and
costs no further vector.

Reference:
    Flegal and Jones, "Batch means and spectral variance estimators in Markov
    chain Monte Carlo", Annals of Statistics 2010.
"""

import math
from typing import NamedTuple

import tensorflow as tf


class BatchMeans(NamedTuple):
    """Sums over the samples so far."""

    total: tf.Tensor  # of all samples
    batch: tf.Tensor  # of the samples of the current batch
    squares: tf.Tensor  # of each finished batch: its sum**2 / its length

    @classmethod
    def zero(cls, dtype) -> "BatchMeans":
        return cls(*[tf.zeros([], dtype)] * 3)

    def add(self, value, number, num_samples: int) -> "BatchMeans":
        """Adds a sample.

        Args:
            value: Scalar tensor, the sample.
            number: Integer tensor: which sample it is, counted from 1. One
                below 1 is not added.
            num_samples: Integer, how many there will be.
        """
        num_batches, length = _partition(num_samples)
        value = tf.where(number >= 1, value, tf.zeros_like(value))
        # The last batch takes what does not divide.
        last_length = num_samples - (num_batches - 1) * length
        is_last = tf.equal(number, num_samples)
        ends = is_last | (
            tf.equal(number % length, 0)
            & (number >= length)
            & (number <= (num_batches - 1) * length)
        )
        batch = self.batch + value
        size = tf.where(is_last, last_length, length)
        square = batch**2 / tf.cast(size, batch.dtype)
        zero = tf.zeros_like(batch)
        return BatchMeans(
            total=self.total + value,
            batch=tf.where(ends, zero, batch),
            squares=self.squares + tf.where(ends, square, zero),
        )

    def standard_error(self, num_samples: int) -> tf.Tensor | None:
        """Standard error of the mean; `None` where there is one sample."""
        if num_samples == 1:
            return None
        num_batches, _ = _partition(num_samples)
        spread = self.squares - self.total**2 / num_samples
        return tf.sqrt(
            tf.maximum(spread, 0.0) / (num_samples * (num_batches - 1))
        )


def _partition(num_samples):
    """Number of batches and the length of all but the last."""
    num_batches = min(num_samples, max(2, math.isqrt(num_samples)))
    return num_batches, num_samples // num_batches
