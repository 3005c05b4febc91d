"""ScoreCovariance: the hypergradient as a covariance, from first derivatives.

For p proportional to exp(-L_T / tau), differentiating the density itself gives

    dE[f]/dlambda = E[df/dlambda] - Cov(f, dL_T/dlambda) / tau,

exact at any temperature above zero. Its variance grows with the number of
hyperparameters and with 1 / tau, so it serves few of them, and as a check of
the other estimators. The temperature is that of the law, tau kappa^2.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.core.vectors import add
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import scaled
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.chain import refuse_moving_start
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.registry import register
from keras_hposgld.estimators.sampled import SampledEstimator
from keras_hposgld.estimators.sampled import SampledState
from keras_hposgld.estimators.score import first_derivatives
from keras_hposgld.estimators.score import law_temperature
from keras_hposgld.estimators.step import Step


class Moments(NamedTuple):
    """Means over the samples so far."""

    score: list  # of dL_T/dlambda
    outer: tf.Tensor  # of f
    covariance: list  # sum of the products of deviations from the means


@register("score_covariance")
class ScoreCovariance(SampledEstimator):
    """The covariance of the outer objective and the inner score.

    An inner step costs one gradient of the inner objective and one evaluation
    of the outer one.

    Args:
        burn_in: Integer `>= 0`. Defaults to `10`.
        num_samples: Integer `>= 2`. Defaults to `1000`.

    Raises:
        ValueError: If a number is out of range, if the sampler's temperature
            is zero, or if the problem has `initial_params`.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.ScoreCovariance(burn_in=100, num_samples=5000)
    ```
    """

    takes_single_steps = False  # it averages the inner objective
    copies = (3, 5)

    def __init__(self, burn_in: int = 10, num_samples: int = 1000):
        self._set_lengths(burn_in, num_samples, fewest=2)

    def begin(self, chain: Chain, params: list) -> Moments:
        refuse_moving_start(
            self, chain.problem, "it is a property of the distribution alone"
        )
        self._temperature(chain)  # refuses what has none
        zero = zeros_like(chain.hyperparameters)
        return Moments(zero, tf.zeros([], params[0].dtype), zero)

    def _temperature(self, chain: Chain) -> float:
        """That of the law."""
        return law_temperature(self, chain, "the covariance is divided by it")

    def differentiate(
        self, chain: Chain, own: Moments, position: Position, batch: Any
    ) -> LinearizedGradient:
        """First derivatives alone, by one backward pass."""
        return first_derivatives(chain, position, batch)

    def contribute(self, chain: Chain, own: Moments, step: Step) -> tuple:
        """Welford's update: means, and products of deviations from them."""
        hypers = list(chain.hyperparameters)
        score = step.inner.pullback(None)
        if chain.decay(hypers, step.before.params):
            # The penalty that a decay amounts to is half of theta . d / S.
            half = scaled(0.5, step.scales.inverse(step.before.params))
            by_lambda, _ = chain.decay_products(
                step.before.params, half, step.scales
            )
            score = add(score, by_lambda)
        f, dtype = step.outer.value, own.outer.dtype
        number = tf.cast(step.index + 1 - self.burn_in, dtype)
        counts = tf.cast(number > 0, dtype)
        weight = counts / tf.maximum(number, 1.0)
        deviation = tf.cast(f, dtype) - own.outer
        dense = with_zeros(score, hypers)
        mean = [
            m + tf.cast(weight, m.dtype) * (tf.cast(s, m.dtype) - m)
            for m, s in zip(own.score, dense, strict=True)
        ]
        from_mean = plus_scaled(dense, -1.0, mean)
        product = [
            None if s is None else tf.cast(deviation, part.dtype) * part
            for s, part in zip(score, from_mean, strict=True)
        ]
        moments = Moments(
            mean,
            own.outer + weight * deviation,
            plus_scaled(own.covariance, counts, product),
        )
        return moments, scaled(1.0 / self._temperature(chain), product)

    def conclude(self, chain: Chain, state: SampledState) -> dict:
        # h holds sums over M samples; a covariance has M - 1 degrees of
        # freedom, one of which the running means have taken.
        number, temperature = self.num_samples, self._temperature(chain)
        missing = 1.0 / (temperature * number * (number - 1.0))
        return {
            "hypergradient": plus_scaled(
                scaled(1.0 / number, state.h), -missing, state.own.covariance
            )
        }
