"""How strengths follow the weights, where the evidence is learned from.

A penalty of one group of H weights at the temperature tau is the prior

    r^shape exp(-r size),

of a rate r that is the strength over tau:

    L2    r = 2 s / tau, the precision    shape H/2    size sum w^2 / 2
    L1    r = s / tau                     shape H      size sum |w|

A hyperprior says how large a rate may be. `gibbs` takes that of a half-Cauchy
scale, see `hyperparameters.half_cauchy`: heavy tails to both sides, so that a
group may be of no use or of great use. The rate is drawn from its law given the
weights.

`gradient` climbs the logarithm of the evidence with r ~ Gamma(1/2, 1/(2 r0)),
by steps of the logarithm of r. With an L1 and an L2 penalty on one weight the
prior is no such power of either rate. Its normalizer says by its derivative
what r size is in the mean under the prior, which takes the place of the shape,
see `expected_sizes`; both rates then follow the gradient.

Reference: Carvalho, Polson and Scott, "The horseshoe estimator", Biometrika
2010.
"""

import math
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.hyperparameters import half_cauchy
from keras_hposgld.hyperparameters.half_cauchy import gamma
from keras_hposgld.hyperparameters.half_cauchy import HALF
from keras_hposgld.regularizers.normalizers import log_normalizer

# Of the gradient rule. A strength of a group rises by this in the logarithm at
# most, falls by three times as much, and by less the longer it was learned.
FASTEST = 0.5
SLOWER_AFTER = 100  # chains
LOWEST = -3.0  # of what is followed: one large weight says little


class Groups(NamedTuple):
    """The groups of one weight that have a strength each.

    Attributes:
        log_rate: Tensor, log r of each.
        shape: Float, the same for all.
        size: Tensor like `log_rate`.
        expected: Tensor like `log_rate`, the mean of r size under the prior.
            `None` (default): the shape.
    """

    log_rate: tf.Tensor
    shape: float
    size: tf.Tensor
    expected: tf.Tensor | None = None


def log_rate_of(log_strength: tf.Tensor, power: str, tau: Any) -> tf.Tensor:
    """log r, from the logarithm of a strength."""
    return log_strength - _log_of_unit(power, tau, log_strength.dtype)


def log_strength_of(log_rate: tf.Tensor, power: str, tau: Any) -> tf.Tensor:
    """The way back."""
    return log_rate + _log_of_unit(power, tau, log_rate.dtype)


def _log_of_unit(power: str, tau: Any, dtype: Any) -> tf.Tensor:
    unit = tau / 2 if power == "l2" else tau
    return tf.math.log(tf.cast(unit, dtype))


def usual_rate(shape: tuple, power: str) -> float:
    """r0, at which the outputs of a layer have the variance 1/2.

    Args:
        shape: Tuple, that of the weight. One of a single axis, such as a bias,
            is of order one.
        power: `"l1"` or `"l2"`.
    """
    fan_in = math.prod(shape[:-1])
    precision = 2.0 * fan_in if len(shape) > 1 else 1.0
    return precision if power == "l2" else math.sqrt(2.0 * precision)


def size_of(deviation: tf.Tensor, power: str, axes: list) -> tf.Tensor:
    """What the rate of a group is multiplied by, the axes summed over."""
    each = tf.abs(deviation) if power == "l1" else 0.5 * deviation**2
    return tf.reduce_sum(each, axes)


def expected_sizes(log_rates: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The mean of r size under the prior of one weight, for each of its rates.

    Args:
        log_rates: Dictionary from `"l1"`, `"l2"` or both to log r.
    """
    with tf.GradientTape() as tape:
        tape.watch(log_rates)
        log_strengths = {
            power: log_strength_of(log_rate, power, 1.0)
            for power, log_rate in log_rates.items()
        }
        log_z = log_normalizer(log_strengths, 1.0)
    slopes = tape.gradient(log_z, log_rates)
    return {power: -slope for power, slope in slopes.items()}


def gibbs(groups: Groups, usual: Any, seeds: Sequence) -> tuple:
    """Draws nu and then r, given the weights.

    Args:
        groups: `Groups`.
        usual: Float or scalar tensor, r0.
        seeds: Two integer tensors `(2,)`.

    Returns:
        log r of each group, and nu.
    """
    rate = tf.exp(groups.log_rate)
    new, nu = half_cauchy.draw(rate, usual, groups.shape, groups.size, seeds)
    return tf.math.log(new), nu


def common_scale(usual: Any, nu: tf.Tensor, seeds: Sequence) -> tf.Tensor:
    """Draws r0 itself, of a half-Cauchy law of scale 1, given all nu."""
    first, second = seeds
    usual = tf.cast(usual, nu.dtype)
    kappa = gamma(1.0, usual + 1.0, first)
    number = nu.shape.num_elements()
    return gamma(HALF + HALF * number, kappa + tf.reduce_sum(nu), second)


def gradient(groups: Groups, usual: Any, number: tf.Tensor) -> tf.Tensor:
    """One step of log r uphill, in units of what the group can tell."""
    rate = tf.exp(groups.log_rate)
    usual = tf.cast(usual, rate.dtype)
    most = groups.shape + HALF
    expected = groups.shape if groups.expected is None else groups.expected
    slope = expected + HALF - (groups.size + HALF / usual) * rate
    age = tf.cast(number, rate.dtype) / SLOWER_AFTER
    step = FASTEST / tf.sqrt(1.0 + age)
    return groups.log_rate + step * tf.maximum(slope / most, LOWEST)
