"""How much of the derivative by a strength a chain of some steps sees.

A chain sees the beginning of what a strength does to a weight; the rest comes
after its end. What is added to its estimate, as the prior of a strength is, has
to be scaled alike, or it wins over an estimate that is small for no other
reason than that the chain is short.

Where the loss has no curvature of its own, a weight w comes to rest at the rate
of the pull alone. With c, the part of its distance from rest that a step takes,

    w_m - w_rest = (1 - c)^m (w_0 - w_rest)

so that a derivative through m steps is 1 - (1 - c)^m of that of the rest.
"""

from typing import Any

import numpy as np
import tensorflow as tf


def after(num_steps: float, rate: tf.Tensor) -> tf.Tensor:
    """`1 - (1 - rate)**num_steps`, of an estimator that knows the curvature."""
    rate = tf.clip_by_value(rate, 0.0, 1.0 - 1e-6)
    return -tf.math.expm1(num_steps * tf.math.log1p(-rate))


def unforgotten(estimator: Any, rate: tf.Tensor, momentum: float) -> tf.Tensor:
    """The mean over the samples of `rate * m`, of one that does not.

    Such an estimator leaves out how the chain forgets. What it sees of a pull
    grows with the chain, beyond 1. Under momentum the velocity that a pull
    leads to has come to 1 - mu^i of its last value after i steps.
    """
    steps = np.arange(1, estimator.num_steps + 1)
    seen = np.cumsum(1.0 - momentum**steps)
    return rate * seen[estimator.burn_in :].mean()
