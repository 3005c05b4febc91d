"""Noise matrices of labels, and how they follow what labels there are.

T[k, j] is the probability of the label j where the class k is true. Learned
from noisy labels alone, T follows the expected counts of flipped labels, as in
the EM algorithm. With n = 1 / tau examples and the free energy F, the counts
are in the slopes of F. N[k, j] counts true k with the label j, N[k] is its sum,
and a rate r flips Q of the n labels:

    rate      Q / n = r (1 - (1 - r) dF/dr)
    matrix    (N[k, j] - T[k, j] N[k]) / n = -dF/dlogits[k, j]

A prior adds c labels, distributed as T was at the start: Beta(1 + c r0,
1 + c (1 - r0)) or Dirichlet(1 + c T0[k]). Both rules come to rest where T is
the most probable one, with the weights integrated out. That of the matrix needs
no N[k]: a row moves by its share of the examples, and so never too far.

Reference: Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data
via the EM Algorithm", Journal of the Royal Statistical Society B, 1977.
"""

from typing import Any

import numpy as np
import tensorflow as tf

# The share of the way to the expected counts that a chain makes at first, and
# the most that it changes the logarithm of an entry by.
RATE = 0.5
FASTEST = 0.1
SLOWER_AFTER = 100  # chains
SUM_ERROR = 1e-6  # of a row that the user gives


def symmetric(rate: Any, num_classes: int) -> Any:
    """T of one flip rate, which all other classes share alike."""
    others = rate / (num_classes - 1)
    return others + (1.0 - num_classes * others) * np.eye(num_classes)


def checked_matrix(value: Any, num_classes: int) -> np.ndarray:
    """A matrix that the user gives as the first T.

    Args:
        value: What was passed as `initial_value`.
        num_classes: Integer.

    Raises:
        ValueError: If it is not row-stochastic, of another shape, or not
            dominated by its diagonal.
    """
    try:
        matrix = np.asarray(value, "float64")
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    shape = (num_classes, num_classes)
    is_one = matrix.shape == shape and bool(
        np.all(matrix > 0) and np.allclose(matrix.sum(1), 1, atol=SUM_ERROR)
    )
    if not is_one:
        raise ValueError(
            f"`initial_value` must be a number or a matrix of shape {shape}, "
            "with rows of positive numbers whose sum is 1. Received: "
            f"initial_value={value!r:.200}. Pass a number for the same rate "
            "everywhere."
        )
    if np.any(matrix.argmax(axis=1) != np.arange(num_classes)):
        raise ValueError(
            "`initial_value` must have the largest number of each row on the "
            "diagonal: it says which class is which. Received: "
            f"initial_value={value!r:.200}. Start from a weaker noise."
        )
    return matrix / matrix.sum(axis=1, keepdims=True)


def step_of(number: tf.Tensor) -> tf.Tensor:
    """The share of the way that is made after so many chains."""
    return RATE / tf.sqrt(1.0 + tf.cast(number, tf.float32) / SLOWER_AFTER)


def next_log_rate(
    log_rate: tf.Tensor, first: float, slope: tf.Tensor, weight: Any, step: Any
) -> tf.Tensor:
    """log r after a step towards the expected share of flipped labels.

    Args:
        log_rate: Scalar tensor.
        first: Float, r0.
        slope: Scalar tensor, dF/dr of a label on average.
        weight: Scalar tensor, c over the number of labels.
        step: Scalar tensor.
    """
    rate = tf.exp(log_rate)
    flipped = 1.0 - (1.0 - rate) * slope  # over the rate
    ratio = (flipped + weight * first / rate) / (1.0 + weight)
    return log_rate + _limited(step, ratio - 1.0)


def next_logits(
    logits: tf.Tensor, first: Any, slope: tf.Tensor, weight: Any, step: Any
) -> tf.Tensor:
    """The logarithms of T after a step towards the expected counts.

    Args:
        logits: Tensor `(num_classes, num_classes)`, of each row of T.
        first: Array like it, T0.
        slope: Tensor like it, dF/dlogits of a label on average.
        weight: As in `next_log_rate`.
        step: Likewise.
    """
    now = tf.nn.softmax(logits)
    excess = weight * (tf.cast(first, now.dtype) - now) - slope
    return tf.nn.log_softmax(logits + _limited(step, excess / now))


def _limited(step: Any, change: tf.Tensor) -> tf.Tensor:
    step = tf.cast(step, change.dtype)
    return tf.clip_by_value(step * change, -FASTEST, FASTEST)
