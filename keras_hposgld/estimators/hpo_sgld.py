"""HPO-SGLD: the paper's estimator, equation by equation.

With the inner objective L_T, the outer objective f, the inner weights theta,
the hyperparameters lambda, C = d2L_T/dtheta dlambda and H = d2L_T/dtheta2 at
theta^{m-1}, v_m = df/dtheta(theta^m), D0 = dtheta^0/dlambda, B burn-in steps
and M samples, the paper's Algorithm 1 starts from g_0 = v_0 . D0 and h = 0, and
repeats for m = 1, ..., B + M:

    (24)  theta^m = the sampler's step from theta^{m-1} along grad L_T
    (22)  y <- mu y - (A B v_m) . (C + H . D0)
          g <- g + y + (theta^m - theta^{m-1}) . d2f/dtheta2(theta^{m-1}) . D0
                 - v_m . (dD/dlambda + dD/dtheta . D0)
    (25)  h <- h + (df/dlambda(theta^m) + g) / M, for m > B.

mu, A and B are those of the sampler: for the paper's SGLD mu is 0 and A B the
learning rate alpha (the paper's epsilon / 2, once the temperature is out of
log p). D is the decoupled decay of the weights. If a projection P ends a step,
v_m is v_m . dP/dtheta, and the sample has v_m . (dP/dtheta - 1) . D0 besides.

What a step adds to g is part of every sample to come, and counted at once as
often as that (`weights`): no g is kept. What multiplies D0 is summed up in the
space of theta, as `u`, and meets D0 at the end. If D0 is zero there is no `u`.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.derivatives import vector_jacobian_product
from keras_hposgld.core.vectors import add
from keras_hposgld.core.vectors import Multiple
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import scaled
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.registry import register
from keras_hposgld.estimators.sampled import SampledEstimator
from keras_hposgld.estimators.sampled import SampledState
from keras_hposgld.estimators.share_seen import unforgotten
from keras_hposgld.estimators.step import Step

CURVATURES = ("paper", "telescoped")


class Sums(NamedTuple):
    """What the recursion keeps beside h; empty where not needed."""

    y: list  # with momentum: like lambda, and like theta if there is a u
    u: list  # what multiplies D0 in h


@register("hpo_sgld")
class HPOSGLD(SampledEstimator):
    """The paper's forward recursion over an SGLD chain.

    An inner step costs a gradient of either objective and a product with the
    mixed derivative, which for learned regularizers is elementwise. The
    recursion leaves out how the inner dynamics forget, so the hypergradient
    grows with the chain. Where the outer objective does not depend on the
    hyperparameters directly, an adaptive optimizer of them absorbs that.

    Args:
        burn_in: Integer `>= 0`, the paper's B. Defaults to `10`.
        num_samples: Integer `>= 1`, the paper's M. Defaults to `10`.
        curvature: Where the start of the chain depends on the hyperparameters:
            `"paper"` (default), the Hessian-vector product of equation 22, or
            `"telescoped"`, the difference `v_m - v_{m-1}` that it approximates,
            which is cheaper and exact.
        outer_every: Integer `>= 1`, steps from one outer gradient to the next,
            which costs one more copy of the weights. Defaults to `1`.

    Raises:
        ValueError: If a number is out of range or `curvature` is unknown.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.HPOSGLD(burn_in=5, num_samples=15)
    ```
    """

    outer_at_end_of_step = True
    copies = (5, 3)  # theta before and after, a gradient, v, A B v
    share_seen = unforgotten

    def __init__(
        self,
        burn_in: int = 10,
        num_samples: int = 10,
        curvature: str = "paper",
        outer_every: int = 1,
    ):
        self._set_lengths(burn_in, num_samples, outer_every)
        self.curvature = check_known("curvature", curvature, CURVATURES)

    def begin(self, chain: Chain, params: list) -> Sums:
        u = zeros_like(params) if chain.problem.initial_params else []
        y = [*zeros_like(chain.hyperparameters), *u]
        return Sums(y if chain.sampler.momentum else [], u)

    def sources(self, chain: Chain, own: Sums, position: Position) -> list:
        return [*chain.hyperparameters, *(position.params if own.u else [])]

    def weights(self) -> np.ndarray:
        to_come = self.num_steps - np.arange(self.num_steps)
        return np.minimum(self.num_samples, to_come)

    def contribute(self, chain: Chain, own: Sums, step: Step) -> tuple:
        """(22): what g loses, in the space of lambda and in that of theta."""
        v = chain.pulled(step.outer.v, step.after.unprojected)
        scales, theta = step.scales, step.before.params
        rate, pushed = scales.pushed(v)
        y = chain.products(step.inner, pushed)
        rest: list = sum(chain.decay_products(theta, v, scales), [])[: len(y)]
        direct = scales.direct(v)
        if direct is not None:
            rest = add(rest, chain.products(step.inner, direct))
        if any(part is not None for part in (*own.y, *own.u, *rest)):
            rate, y = 1.0, scaled(rate, y)
        if own.y:
            y = add(scaled(chain.sampler.momentum, own.y), y)
        number, u, loss = len(chain.hyperparameters), own.u, add(y, rest)
        if u:
            to_come = tf.gather(self.weights(), step.index)
            u = plus_scaled(u, -to_come, loss[number:])
            u = self._plus_change_of_v(chain, u, step, v, to_come)
        return Sums(y if own.y else [], u), Multiple(rate, loss[:number])

    def _plus_change_of_v(
        self, chain: Chain, u: list, step: Step, v: list, to_come: tf.Tensor
    ) -> list:
        """Adds how v_m came about, from v_0 on, as often as it is to come."""
        is_sample = step.index >= self.burn_in
        if self.curvature == "telescoped":  # the sum of v's changes is v_m
            return plus_scaled(u, is_sample, v)
        if step.after.unprojected:
            u = plus_scaled(u, is_sample, plus_scaled(v, -1.0, step.outer.v))
        outer = chain.linearize_outer(
            step.before.params, step.inner.carry, step.outer_batch
        )
        moved = plus_scaled(step.after.params, -1.0, step.before.params)
        change = plus_scaled(
            chain.mean(outer.pullback(moved)), step.index == 0, outer.gradient
        )
        return plus_scaled(u, to_come, change)

    def conclude(self, chain: Chain, state: SampledState) -> dict:
        """Where D0 is met. The error was followed in lambda's part alone."""
        u, start = state.own.u, chain.problem.initial_params
        if not u:
            return {}
        d0_part = vector_jacobian_product(start, chain.hyperparameters, u)
        h = scaled(1.0 / self.num_samples, plus(state.h, d0_part))
        return {"hypergradient": h, "standard_error": None}
