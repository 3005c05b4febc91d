"""L1 penalties as mixtures of quadratic ones, while the evidence is learned.

At the temperature tau a penalty s |d| of one weight, d its distance from the
center, is a Laplace prior of the rate r = s / tau. That is a mixture of
Gaussians,

    r/2 exp(-r |d|) = int N(d; 0, t) r^2/2 exp(-r^2 t / 2) dt.

Given t the penalty is the quadratic h/2 d^2 with h = tau / t. A step that knows
the curvature of quadratic penalties follows it, however strong it is. At the
end of each chain t is drawn for each entry, from its law given d and r,

    1 / t ~ InverseGaussian(mean r / |d|, shape r^2),

so that h = s^2 / tau times a draw of the mean 1 / (r |d|) and the shape 1. With
another penalty b d^2 beside it, the law of t given d is the same.

Reference: Park and Casella, "The Bayesian Lasso", Journal of the American
Statistical Association 2008.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from keras_hposgld.hyperparameters.own_rules import Beginning
from keras_hposgld.hyperparameters.own_rules import ChainEnd

POWER = "l1"
# r |d| below which a weight is at its center, where the law of 1 / t has no
# mean; and the largest of its draws in units of r^2. The weight is then within
# 1e-7 of the width of its prior, which is what float32 can tell from zero.
AT_CENTER = 1e-10
LARGEST_DRAW = 1e15
LARGEST = 1e30  # of h: a step multiplies it by numbers of its own
PURPOSE = 4  # of a seed, apart from those of `strength_updates`


def begin(owner: Any, beginning: Beginning) -> None:
    """Makes the curvatures h of all weights that have none yet.

    Args:
        owner: `LearnableRegularizer`, with strengths.
        beginning: `Beginning`.
    """
    if not (owner.is_mixture and beginning.follows_any):
        return
    for penalty in owner.penalties:
        if penalty.mixture is None:
            log_strength, size = _parts(penalty, penalty.weight)
            strength = tf.exp(log_strength)
            width = beginning.temperature / strength
            h = strength / tf.maximum(size, width)
            owner.add_mixture(penalty, _bounded(penalty, h).numpy())


def draw(owner: Any, end: ChainEnd) -> None:
    """Draws t of each entry given the weights and the strengths as they are.

    The strengths were renewed just before, by their law given the weights with
    t integrated out. Both together are one draw of (r, t) given the weights, so
    that the chain keeps its law: a partially collapsed Gibbs sampler. In the
    other order it would not, nor with weights that have moved in between.

    Args:
        owner: `LearnableRegularizer`.
        end: `ChainEnd`.
    """
    for penalty in owner.penalties:
        if penalty.mixture is None:
            continue
        log_strength, size = _parts(penalty, end.weight(penalty.weight))
        log_tau = tf.math.log(tf.cast(end.temperature, size.dtype))
        rate = tf.exp(log_strength - log_tau)
        mean = 1.0 / tf.maximum(rate * size, AT_CENTER)
        law = tfp.distributions.InverseGaussian(mean, tf.ones_like(mean))
        seed = end.seed_of(penalty.strengths[POWER], PURPOSE)
        drawn = tf.minimum(law.sample(seed=seed), LARGEST_DRAW)
        h = tf.exp(2.0 * log_strength - log_tau) * drawn
        penalty.mixture.assign(_bounded(penalty, h))


def quadratic(deviation: tf.Tensor, h: tf.Tensor) -> tf.Tensor:
    """Zero, with the derivatives of the sum of `h / 2 * deviation**2`."""
    square = deviation**2
    return tf.reduce_sum(0.5 * h * (square - tf.stop_gradient(square)))


@contextlib.contextmanager
def mixing(weights: list) -> Iterator[None]:
    """Lets the penalties of weights be mixtures, where they have drawn h.

    It may be entered within itself: a replica's thread can wait inside of it
    while another one enters.

    Args:
        weights: List of variables.
    """
    penalties = [
        weight.regularizer
        for weight in weights
        if getattr(weight.regularizer, "mixture", None) is not None
    ]
    for penalty in penalties:
        penalty.times_mixing += 1
    try:
        yield
    finally:
        for penalty in penalties:
            penalty.times_mixing -= 1


def _parts(penalty: Any, weight: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """log s, which broadcasts against the weight, and |d| of each entry."""
    log_strength = tf.reshape(
        penalty.log_strength(POWER), penalty.owner.aligned(penalty.shape)
    )
    size = tf.abs(penalty.deviation(weight, log_strength.dtype))
    return log_strength, size


def _bounded(penalty: Any, h: tf.Tensor) -> tf.Tensor:
    """h as its variable can hold it, and a step in half precision as well."""
    dtype = tf.as_dtype(penalty.strengths[POWER].dtype)
    largest = min(LARGEST, 0.1 * float(dtype.max))
    return tf.cast(tf.minimum(h, largest), dtype)
