"""ScoreCovariance: the hypergradient as a covariance, from first derivatives.

For p proportional to exp(-L_T / tau), differentiating the density itself gives

    dE[f]/dlambda = E[df/dlambda] - Cov(f, dL_T/dlambda) / tau,

exact at any temperature above zero. Its variance grows with the number of
hyperparameters and with 1 / tau, so it serves few of them, and as a check of
the other estimators.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import value_and_gradients
from keras_hposgld.core.vectors import component_along
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators.batch_means import BatchMeans
from keras_hposgld.estimators.estimator import Chain
from keras_hposgld.estimators.estimator import check_count
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.estimator import refuse_moving_start
from keras_hposgld.estimators.estimator import register
from keras_hposgld.estimators.sampled_losses import SampledLosses


class ScoreCovarianceState(NamedTuple):
    """What the next step needs. Means run over the samples so far."""

    params: list
    carry: Any
    direct: list  # mean of df/dlambda
    score: list  # mean of dL_T/dlambda
    covariance: list  # sum of the products of deviations from the means
    mean_outer: tf.Tensor
    losses: SampledLosses
    error: BatchMeans


@register("score_covariance")
class ScoreCovariance(HypergradientEstimator):
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

    serves_replicas = True

    def __init__(self, burn_in: int = 10, num_samples: int = 1000):
        self.burn_in = check_count("burn_in", burn_in, 0)
        self.num_samples = check_count("num_samples", num_samples, 2)
        self.num_steps = self.burn_in + self.num_samples

    def init(self, chain: Chain, params: list) -> ScoreCovarianceState:
        refuse_moving_start(
            self, chain.problem, "it is a property of the distribution alone"
        )
        if _temperature(chain) == 0.0:
            raise ValueError(
                "`ScoreCovariance` needs a temperature above 0: the "
                "covariance is divided by it. Received: temperature="
                f"{chain.sampler.temperature}, noise_scale="
                f"{chain.sampler.noise_scale}. Use `SGLD(temperature=...)`."
            )
        hypers = chain.hyperparameters
        return ScoreCovarianceState(
            params=params,
            carry=chain.problem.initial_carry,
            direct=zeros_like(hypers),
            score=zeros_like(hypers),
            covariance=zeros_like(hypers),
            mean_outer=tf.zeros([], params[0].dtype),
            losses=SampledLosses.zero(self.num_samples, params[0].dtype),
            error=BatchMeans.zero(hypers[0].dtype),
        )

    def step(
        self, chain: Chain, state, index, inner_batch, outer_batch
    ) -> ScoreCovarianceState:
        problem, hypers = chain.problem, list(chain.hyperparameters)
        params, dtype = state.params, state.params[0].dtype
        carried = []

        def inner_objective(params):
            value, carry = problem.inner(
                hypers, params, inner_batch, state.carry
            )
            carried.append(carry)
            return value

        inner, score, gradient = value_and_gradients(
            inner_objective, hypers, params, problem.loss_scale
        )
        (carry,) = carried
        f, direct, _ = value_and_gradients(
            lambda params: problem.outer(hypers, params, outer_batch, carry),
            hypers,
            params,
            problem.loss_scale,
        )
        (inner, f), score, direct = chain.mean([inner, f], score, direct)
        chain.report_unused(score, direct)
        # Welford's update: means, and products of deviations from them.
        number = index + 1 - self.burn_in
        weight = tf.cast(number > 0, dtype) / tf.cast(
            tf.maximum(number, 1), dtype
        )
        zero = zeros_like(hypers)
        score, direct = plus(zero, score), plus(zero, direct)
        (mean_outer,) = _moved([state.mean_outer], weight, [f])
        mean_score = _moved(state.score, weight, score)
        deviation = tf.cast(f, dtype) - state.mean_outer
        from_mean = plus_scaled(score, -1.0, mean_score)
        product = [tf.cast(deviation, t.dtype) * t for t in from_mean]
        covariance = plus_scaled(
            state.covariance, tf.cast(number > 0, dtype), product
        )
        # What this sample adds to the estimate, for its error.
        influence = plus_scaled(direct, -1.0 / _temperature(chain), product)
        estimate = plus_scaled(
            state.direct, -weight / _temperature(chain), covariance
        )
        return ScoreCovarianceState(
            params=chain.move(params, chain.settle(gradient), index),
            carry=carry,
            direct=_moved(state.direct, weight, direct),
            score=mean_score,
            covariance=covariance,
            mean_outer=mean_outer,
            losses=state.losses.add(inner, f, number),
            error=state.error.add(
                component_along(estimate, influence), number, self.num_samples
            ),
        )

    def finish(
        self, chain: Chain, state, inner_batches, outer_batches
    ) -> Estimate:
        scale = -1.0 / (_temperature(chain) * (self.num_samples - 1))
        return Estimate(
            hypergradient=plus_scaled(state.direct, scale, state.covariance),
            params=state.params,
            inner_loss=state.losses.inner_mean,
            outer_loss=state.mean_outer,
            standard_error=state.error.standard_error(self.num_samples),
            carry=state.carry,
            outer_losses=state.losses.outer,
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        return 3, 5

    def get_config(self) -> dict:
        return {"burn_in": self.burn_in, "num_samples": self.num_samples}


def _temperature(chain):
    """That of the chain's law, which `noise_scale` changes."""
    return chain.sampler.temperature * chain.sampler.noise_scale**2


def _moved(means, weight, values):
    """Running means, moved by a share of the way to new values."""
    return [
        mean + tf.cast(weight, mean.dtype) * (tf.cast(value, mean.dtype) - mean)
        for mean, value in zip(means, values, strict=True)
    ]
