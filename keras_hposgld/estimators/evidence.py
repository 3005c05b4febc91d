"""Evidence: hyperparameters learned from the training data alone.

With an inner objective that is a mean over n examples, plus a penalty, and the
temperature tau = 1/n, the law exp(-L_T / tau) of a chain is the posterior of
the weights, exp(-penalty / tau) / Z_prior their prior, and

    Z(lambda) = int exp(-L_T / tau) dtheta / Z_prior(lambda)

the evidence: how probable the data are under the hyperparameters, whatever the
weights. What is minimized is the free energy F = -tau log Z. Its derivative is

    dF/dlambda = E[ dL_T/dlambda + tau d log Z_prior/dlambda ],

the mean over the chain of first derivatives. The temperature is that of the
law, tau kappa^2.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.core.derivatives import value_and_gradients
from keras_hposgld.core.problem import BilevelProblem
from keras_hposgld.core.vectors import add
from keras_hposgld.core.vectors import Multiple
from keras_hposgld.core.vectors import pack
from keras_hposgld.core.vectors import scaled
from keras_hposgld.core.vectors import unpack
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.chain import refuse_moving_start
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.registry import register
from keras_hposgld.estimators.sampled import SampledEstimator
from keras_hposgld.estimators.sampled import SampledState
from keras_hposgld.estimators.score import first_derivatives
from keras_hposgld.estimators.score import law_temperature
from keras_hposgld.estimators.step import Step

RULES = ("auto", "gibbs", "gradient", "optimizer")


class Own(NamedTuple):
    """What `Evidence` carries along a chain.

    Attributes:
        slope: List of tensors, tau d log Z_prior/dlambda.
        warmth: Tensor with a number for each of the params, the sum over the
            samples of the mean of w dL_T/dw.
        first: Scalar tensor, the inner objective at the first step.
        peak: Scalar tensor, its largest value so far.
    """

    slope: list
    warmth: tf.Tensor
    first: tf.Tensor
    peak: tf.Tensor


@register("evidence")
class Evidence(SampledEstimator):
    """The gradient of the free energy, minus tau times the log evidence.

    In a Keras model the kinds of hyperparameters have rules of their own by
    which they follow the weights, see `update`.

    It needs no outer objective, and ignores one. An inner step costs one
    gradient. The problem says by `log_normalizer` how the prior of the weights
    is normalized, and the sampler has a temperature: one over the number of
    training examples. `Estimate.outer_loss` is `None`.

    Args:
        burn_in: Integer `>= 0`. Defaults to `0`: a chain goes on where the one
            before it ended.
        num_samples: Integer `>= 1`. Defaults to `10`.
        update: How a `BilevelModel` renews strengths at the end of each chain.
            `"gibbs"`: they are drawn from their law given the weights, under a
            half-Cauchy hyperprior. `"gradient"`: they climb the evidence,
            under a Gamma hyperprior. `"auto"` (default): the first for a model
            of one linear layer, the second for any other. `"optimizer"`: they
            follow `hypergradient` by the `hyper_optimizer`, without a
            hyperprior; so does all that has no rule of its own. In
            `keras_hposgld.hypergradient` it means nothing.

    Raises:
        ValueError: If a number is out of range, or `update` is unknown; if the
            sampler's temperature is zero; if the problem has no
            `log_normalizer`, or has `initial_params` or a `decay`.

    Reference:
        MacKay, "A Practical Bayesian Framework for Backpropagation Networks",
        Neural Computation 1992. His `alpha` and `beta` are here `2 s / tau`,
        for a penalty `s * sum(w**2)`, and `1 / sigma**2`.

    Example:

    ```python
    import keras_hposgld as hs
    import tensorflow as tf

    # 30 numbers around 0.4, with noise of standard deviation 1, and a prior
    # whose precision is 60 times the strength.
    data = 0.4 + tf.random.stateless_normal([30], seed=[0, 1])
    problem = hs.BilevelProblem(
        lambda strength, mean, batch: (
            tf.reduce_mean((data - mean) ** 2) / 2 + strength * mean**2
        ),
        log_normalizer=lambda strength, tau: -0.5 * tf.math.log(strength),
    )
    estimate = hs.hypergradient(
        problem,
        tf.constant(5.0),
        tf.constant(0.4),
        estimator=hs.estimators.Evidence(burn_in=100, num_samples=1000),
        sampler=hs.SGLD(0.02, temperature=1 / 30, seed=0),
    )
    assert float(estimate.hypergradient) > 0  # the pull to 0 is too strong
    ```
    """

    needs_outer = False
    takes_single_steps = False  # it averages the inner objective
    copies = (3, 4)  # theta before and after, a gradient; h, three of a sample

    def __init__(
        self, burn_in: int = 0, num_samples: int = 10, update: str = "auto"
    ):
        self._set_lengths(burn_in, num_samples)
        self.update = check_known("update", update, RULES)

    def check_problem(self, problem: BilevelProblem) -> None:
        """Refuses a problem whose prior is not known."""
        super().check_problem(problem)
        refuse_moving_start(
            self, problem, "it is a property of the distribution alone"
        )
        if problem.log_normalizer is None:
            raise ValueError(
                "`Evidence` needs a problem with a `log_normalizer`: without "
                "one every strength would go to zero. Received: "
                "log_normalizer=None. Pass a function of (hyperparameters, "
                "temperature), such as `lambda s, t: -0.5 * tf.reduce_sum("
                "tf.math.log(s))` for a penalty `s * w**2`, or `lambda h, t: "
                "0.0` if no penalty depends on the hyperparameters."
            )
        if problem.decay is not None:
            raise ValueError(
                "`Evidence` cannot serve a problem with a decoupled decay, "
                "which is not part of the density. Received: "
                f"decay={problem.decay!r}. Put a penalty into the inner "
                "objective."
            )

    def begin(self, chain: Chain, params: list) -> Own:
        """tau d log Z_prior/dlambda, which no step changes; nothing else."""
        temperature = law_temperature(
            self, chain, "the evidence is that of a law"
        )
        hypers = list(chain.hyperparameters)
        _, slope, _ = value_and_gradients(
            lambda _: chain.problem.log_normalizer_of(hypers, temperature),
            hypers,
            [],
        )
        dtype = params[0].dtype
        return Own(
            pack(scaled(temperature, slope)),
            tf.zeros([len(params)], dtype),
            tf.zeros([], dtype),
            tf.zeros([], dtype),
        )

    def differentiate(
        self, chain: Chain, own: Own, position: Position, batch: Any
    ) -> LinearizedGradient:
        """First derivatives alone, by one backward pass."""
        return first_derivatives(chain, position, batch)

    def contribute(self, chain: Chain, own: Own, step: Step) -> tuple:
        """The sample dL_T/dlambda + tau d log Z_prior/dlambda."""
        sample = add(step.inner.pullback(None), unpack(own.slope))
        is_sample = tf.cast(step.index >= self.burn_in, own.warmth.dtype)
        warmth = is_sample * _warmth(step.before.params, step.inner.gradient)
        value = tf.cast(step.inner.value, own.first.dtype)
        is_first = step.index == 0
        own = own._replace(
            warmth=own.warmth + warmth,
            first=tf.where(is_first, value, own.first),
            peak=tf.where(is_first, value, tf.maximum(own.peak, value)),
        )
        return own, Multiple(-1.0, sample)

    def of_draw(self, chain: Chain, params: list, batch: Any) -> Estimate:
        """The estimate that rests on one draw of the law, without a step.

        Args:
            chain: `Chain`, which is not run.
            params: List of tensors, the draw.
            batch: All training examples.
        """
        position = chain.begin(params)
        own = self.begin(chain, params)
        inner = self.differentiate(chain, own, position, batch)
        sample = add(inner.pullback(None), unpack(own.slope))
        return Estimate(
            hypergradient=with_zeros(sample, list(chain.hyperparameters)),
            params=params,
            inner_loss=inner.value,
            outer_loss=None,
            carry=inner.carry,
            sampler_state=position.sampler_state,
        )

    def conclude(self, chain: Chain, state: SampledState) -> dict:
        """How warm the chain was, and how high it came."""
        own = state.own
        tau = law_temperature(self, chain, "the evidence is that of a law")
        return {
            "equipartition": own.warmth / (self.num_samples * tau),
            "inner_range": (own.first, own.peak),
        }


def _warmth(params: list, gradient: list) -> tf.Tensor:
    """The mean over each weight of w dL_T/dw, which is tau under the law."""
    means = [
        tf.reduce_mean(w * g) for w, g in zip(params, gradient, strict=True)
    ]
    return tf.stack([tf.cast(mean, means[0].dtype) for mean in means])
