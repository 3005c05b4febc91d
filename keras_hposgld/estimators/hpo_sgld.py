"""HPO-SGLD: the paper's estimator, equation by equation.

With the inner objective L_T, the outer objective f, the inner weights theta,
the hyperparameters lambda, D0 = d theta^0 / d lambda, B burn-in steps and M
samples, the paper's Algorithm 1 starts from g_0 = df/dtheta(theta^0) . D0 and
h = 0, and repeats for m = 1, ..., B + M:

    (24)  theta^m = SGLD step from theta^{m-1} along the gradient of L_T
    (22)  g_m = g_{m-1}
              + (theta^m - theta^{m-1}) . d2f/dtheta2(theta^{m-1}) . D0
              - alpha v_m . (d2L_T/dtheta dlambda(theta^{m-1})
                             + d2L_T/dtheta2(theta^{m-1}) . D0),
          where v_m = df/dtheta(theta^m)
    (25)  h <- h + (df/dlambda(theta^m) + g_m) / M, for m > B.

(alpha is the paper's epsilon / 2, once the temperature is out of log p.) What a
step adds to g_m stays in it, so it is part of every sample that is still to
come. It is counted at once as often as that, and only h is kept, no g. As D0 is
the same all along the chain, h is kept in two parts, `h` in the space of lambda
and `u` in the space of theta, whose sum `h` + `u` . D0 is the paper's h; D0 is
met once, at the end. Without `initial_params` D0 is zero, and there is no `u`.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import linearize_gradient
from keras_hposgld.core.derivatives import vector_jacobian_product
from keras_hposgld.core.vectors import component_along
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators.batch_means import BatchMeans
from keras_hposgld.estimators.estimator import Chain
from keras_hposgld.estimators.estimator import check_count
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.estimator import register
from keras_hposgld.estimators.outer_gradient import outer_gradient
from keras_hposgld.estimators.outer_gradient import unknown
from keras_hposgld.estimators.sampled_losses import SampledLosses

CURVATURES = ("paper", "telescoped")


class HPOSGLDState(NamedTuple):
    """What the next step needs."""

    params: list  # theta^m
    carry: Any
    h: list  # sum over all samples, as far as it is known by now
    u: list
    along: tf.Tensor  # the component of g_m along h
    outer: Any  # f and its derivatives, where they are not renewed each step
    losses: SampledLosses
    error: BatchMeans


@register("hpo_sgld")
class HPOSGLD(HypergradientEstimator):
    """The paper's forward recursion over an SGLD chain.

    An inner step costs a gradient of the inner objective, a gradient of the
    outer objective and a product with the mixed second derivative, which for
    learned regularizers is elementwise. Memory does not grow with the chain.

    The recursion leaves out the decay of the inner dynamics, so over a long
    chain the hypergradient grows with the chain's length. Where the outer
    objective has no direct dependence on the hyperparameters (learned
    regularizers), an adaptive optimizer of the hyperparameters absorbs that.

    Args:
        burn_in: Integer `>= 0`, the paper's B. Defaults to `10`.
        num_samples: Integer `>= 1`, the paper's M. Defaults to `10`.
        curvature: How the curvature of the outer objective enters where the
            start of the chain depends on the hyperparameters. `"paper"`
            (default): the Hessian-vector product of equation 22.
            `"telescoped"`: the difference of gradients that it approximates,
            `v_m - v_{m-1}`, which is cheaper and exact.
        outer_every: Integer `>= 1`: v_m is computed at every so many steps,
            and at the first, and taken for unchanged in between, which costs
            one more copy of the weights. Defaults to `1`.

    Raises:
        ValueError: If a number is out of range or `curvature` is unknown.

    Reference:
        Kim and Hospedales, AAAI 2025, Algorithm 1 and equations 22 to 25.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.HPOSGLD(burn_in=5, num_samples=15)
    assert estimator.num_steps == 20
    ```
    """

    serves_replicas = True

    def __init__(
        self,
        burn_in: int = 10,
        num_samples: int = 10,
        curvature: str = "paper",
        outer_every: int = 1,
    ):
        self.burn_in = check_count("burn_in", burn_in, 0)
        self.num_samples = check_count("num_samples", num_samples, 1)
        if curvature not in CURVATURES:
            raise ValueError(
                f"`curvature` must be one of {CURVATURES}. "
                f"Received: curvature={curvature!r}."
            )
        self.curvature = curvature
        self.outer_every = check_count("outer_every", outer_every, 1)
        self.num_steps = self.burn_in + self.num_samples

    def init(self, chain: Chain, params: list) -> HPOSGLDState:
        moving_start = params if chain.problem.initial_params else []
        return HPOSGLDState(
            params=params,
            carry=chain.problem.initial_carry,
            h=zeros_like(chain.hyperparameters),
            u=zeros_like(moving_start),
            along=tf.zeros([], chain.hyperparameters[0].dtype),
            outer=unknown(chain, params, self.outer_every),
            losses=SampledLosses.zero(self.num_samples, params[0].dtype),
            error=BatchMeans.zero(chain.hyperparameters[0].dtype),
        )

    def step(
        self, chain: Chain, state, index, inner_batch, outer_batch
    ) -> HPOSGLDState:
        problem, hypers = chain.problem, chain.hyperparameters
        m, dtype = index + 1, state.params[0].dtype

        def inner_objective(params):
            return problem.inner(hypers, params, inner_batch, state.carry)

        def outer_objective(params):
            return problem.outer(hypers, params, outer_batch, inner.carry)

        # (24): L_T's gradient at theta^{m-1}, ready for products with vectors.
        sources = [*hypers, *state.params] if state.u else list(hypers)
        inner = linearize_gradient(
            inner_objective,
            state.params,
            sources,
            chain.settle,
            problem.loss_scale,
        )
        params = chain.move(state.params, inner.gradient, index)

        # (22): what is in the space of lambda, then what will meet D0.
        (f, direct, v), outer = outer_gradient(
            chain,
            outer_objective,
            params,
            state.outer,
            index,
            self.num_steps,
            self.outer_every,
        )
        v = chain.mean(v)
        (f, value), direct, products = chain.mean(
            [f, inner.value], direct, inner.pullback(v)
        )
        mixed, hessian = products[: len(hypers)], products[len(hypers) :]
        chain.report_unused(mixed, direct)
        alpha = chain.learning_rate(index, dtype)
        to_come = tf.minimum(self.num_samples, self.num_steps - index)
        to_come = tf.cast(to_come, dtype)
        is_sample = tf.cast(m > self.burn_in, dtype)
        h = plus_scaled(state.h, -alpha * to_come, mixed)
        u = plus_scaled(state.u, -alpha * to_come, hessian)
        if u and self.curvature == "paper":
            change = self._change_of_v(chain, outer_objective, state, params, m)
            u = plus_scaled(u, to_come, change)
        elif u:
            # v_0 + (v_1 - v_0) + ... + (v_m - v_{m-1}) = v_m
            u = plus_scaled(u, is_sample, v)

        # (25), the division by M left to the end.
        h = plus_scaled(h, is_sample, direct)
        along = state.along - alpha * component_along(h, mixed)
        return HPOSGLDState(
            params=params,
            carry=inner.carry,
            h=h,
            u=u,
            along=along,
            outer=outer,
            losses=state.losses.add(value, f, m - self.burn_in),
            error=state.error.add(
                along + component_along(h, direct),
                m - self.burn_in,
                self.num_samples,
            ),
        )

    def _change_of_v(self, chain, outer_objective, state, params, m):
        """`(theta^m - theta^{m-1}) . d2f/dtheta2`, and v_0 at the first m."""
        outer = linearize_gradient(
            lambda params: (outer_objective(params), None),
            state.params,
            state.params,
            chain.mean,
        )
        moved = plus_scaled(params, -1.0, state.params)
        is_first = tf.cast(tf.equal(m, 1), params[0].dtype)
        change = chain.mean(outer.pullback(moved))
        return plus_scaled(change, is_first, outer.gradient)

    def finish(
        self, chain: Chain, state, inner_batches, outer_batches
    ) -> Estimate:
        h = state.h
        error = state.error.standard_error(self.num_samples)
        if state.u:
            error = None  # the samples were followed in lambda's part alone
            start = chain.problem.initial_params
            through_start = vector_jacobian_product(
                start, chain.hyperparameters, state.u
            )
            h = plus(h, through_start)
        return Estimate(
            hypergradient=[total / self.num_samples for total in h],
            params=state.params,
            inner_loss=state.losses.inner_mean,
            outer_loss=state.losses.outer_mean,
            standard_error=error,
            carry=state.carry,
            outer_losses=state.losses.outer,
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        # theta before and after, a gradient, v (and v of before); h and a
        # product, before and after.
        return 4 + (self.outer_every > 1), 3

    def get_config(self) -> dict:
        return {
            "burn_in": self.burn_in,
            "num_samples": self.num_samples,
            "curvature": self.curvature,
            "outer_every": self.outer_every,
        }
