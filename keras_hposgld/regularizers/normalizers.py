"""How the prior that a penalty stands for is normalized.

At a temperature tau a penalty of one weight w is minus tau times the log of a
density, up to the constant

    log Z = log int exp(-penalty(w) / tau) dw,

where a center shifts the integral and changes nothing:

    s w^2           (1/2) log(pi tau / s)
    s |w|           log(2 tau / s)
    a |w| + b w^2   (1/2) log(pi tau / b) + log erfcx(x), x = a / 2 sqrt(b tau)

erfcx(x) = exp(x^2) erfc(x) is 1 for small x, which leaves L2, and 1 / (x sqrt
pi) for large x, which leaves L1. All is computed from the logarithms of the
strengths, so that no strength is too small or too large.
"""

import math
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

# From this x on, erfcx(x) is taken from its asymptotic series in 1 / x^2, whose
# terms are below 1e-13 of it here from the ninth on. Below, its derivative
# loses 2 x^2 units of rounding.
LARGE_X = 10.0
NUM_TERMS = 9


def log_normalizer(
    log_strengths: dict[str, tf.Tensor], temperature: Any
) -> Any:
    """log Z of one weight under each of some strengths.

    Args:
        log_strengths: Dictionary from `"l1"`, `"l2"` or both to tensors of one
            shape, in float32 or float64.
        temperature: Float or scalar tensor, `> 0`.

    Returns:
        A tensor of that shape.
    """
    dtype = next(iter(log_strengths.values())).dtype
    if not tf.is_tensor(temperature):  # a cast would go through float32
        temperature = tf.constant(temperature, dtype)
    log_tau = tf.math.log(tf.cast(temperature, dtype))
    a, b = log_strengths.get("l1"), log_strengths.get("l2")
    if b is None:
        return _laplace(a, log_tau)
    if a is None:
        return _gauss(b, log_tau)
    log_x = a - 0.5 * (b + log_tau) - math.log(2.0)
    log_large = math.log(LARGE_X)
    is_large = log_x > log_large
    # What is not selected gets an argument with a finite derivative.
    x = tf.exp(tf.where(is_large, tf.zeros_like(log_x), log_x))
    log_x = tf.where(is_large, log_x, log_large * tf.ones_like(log_x))
    return tf.where(
        is_large,
        _laplace(a, log_tau) + tf.math.log1p(_tail(tf.exp(-2.0 * log_x))),
        _gauss(b, log_tau) + tfp.math.logerfcx(x),
    )


def _laplace(log_strength: tf.Tensor, log_tau: tf.Tensor) -> tf.Tensor:
    return math.log(2.0) + log_tau - log_strength


def _gauss(log_strength: tf.Tensor, log_tau: tf.Tensor) -> tf.Tensor:
    return 0.5 * (math.log(math.pi) + log_tau - log_strength)


def _tail(r: tf.Tensor) -> tf.Tensor:
    """`sqrt(pi) x erfcx(x) - 1` with r = 1 / x^2: -r/2 + 3 r^2/4 - ..."""
    total = tf.zeros_like(r)
    for number in range(NUM_TERMS, 0, -1):  # Horner's scheme
        total = -(number - 0.5) * r * (1.0 + total)
    return total
