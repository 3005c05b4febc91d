"""Draws of a rate, or a precision, whose inverse root has a half-Cauchy prior.

The prior r^(-1/2) / (r + r0) of a rate r is that of a half-Cauchy scale. It is
a mixture,

    r | nu ~ Gamma(1/2, nu),    nu ~ Gamma(1/2, r0),

so that beside a likelihood r^shape exp(-r size) both can be drawn in turn:

    nu ~ Gamma(1, r + r0),    r ~ Gamma(shape + 1/2, nu + size).

Reference: Wand et al., "Mean Field Variational Bayes for Elaborate
Distributions", Bayesian Analysis 2011.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

HALF = 0.5
SMALLEST = 1e-30  # a draw whose logarithm is finite


def draw(
    rate: tf.Tensor, usual: Any, shape: Any, size: tf.Tensor, seeds: Sequence
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws nu and then r.

    Args:
        rate: Tensor, r as it is.
        usual: Float or scalar tensor, r0.
        shape: Float or scalar tensor.
        size: Tensor like `rate`.
        seeds: Two integer tensors `(2,)`.

    Returns:
        r and nu, like `rate`.
    """
    first, second = seeds
    nu = gamma(1.0, rate + tf.cast(usual, rate.dtype), first)
    return gamma(shape + HALF, nu + size, second), nu


def gamma(shape: Any, rate: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws of Gamma laws with one shape and several rates, never zero."""
    law = tfp.distributions.Gamma(tf.cast(shape, rate.dtype), rate)
    return tf.maximum(law.sample(seed=seed), SMALLEST)
