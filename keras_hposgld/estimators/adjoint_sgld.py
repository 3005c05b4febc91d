"""AdjointSGLD: this project's own estimator, right over long chains.

HPO-SGLD leaves out how the inner dynamics forget. This estimator keeps it, by
one more vector q of the size of the weights. With v = df/dtheta, H the Hessian
of the inner objective L_T and C = d2L_T/dtheta dlambda, all of them at the
theta^m where a step of the chain begins, each step

    takes the sample   df/dlambda - q . C,   and then moves q along the force
    H q - v, without noise:   w <- mu w + A (H q - v),   q <- q - B w.

So a sample pairs C with the q of *before* the step: the derivative of the chain
is a sum over the steps before it. q is the adjoint of the chain, run forward in
time, which a reversible law allows. At temperature 0 it solves H q = v, as SOBA
does (Dagreou et al., 2022).

Where a step ends with a projection P of the weights, so does that of q, with
the transposed derivative: q <- S P'^T S^-1 (q - B w), S what a constant force
moves the weights by. At temperature 0 that is the derivative of the fixed point
theta = P(theta - S grad L_T), since q = S p with p = P'^T (p + v - H S p).
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.core.vectors import norm
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import scaled
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators import share_seen
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.chain import refuse_moving_start
from keras_hposgld.estimators.law import law_products
from keras_hposgld.estimators.law import other_hessian_product
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.registry import register
from keras_hposgld.estimators.sampled import SampledEstimator
from keras_hposgld.estimators.sampled import SampledState
from keras_hposgld.estimators.step import Step

CURVATURES = ("hessian", "gauss_newton")
PRODUCTS = ("exact", "difference")
DIVERGED = 1e3  # a residual |H q - v| / |v|, which is 1 at the start


class Adjoint(NamedTuple):
    """What the recursion keeps."""

    q: list
    w: list  # the velocity of q; empty without momentum
    residual: tf.Tensor  # |H q - v| of the last step
    largest_v: tf.Tensor  # the largest |v| so far


@register("adjoint_sgld")
class AdjointSGLD(SampledEstimator):
    """A forward adjoint over an SGLD chain.

    An inner step costs one of HPO-SGLD and a product with the Hessian. The
    chain has to mix without crossing barriers: between separated wells no local
    estimator is right. Where q diverges the estimate is NaN, which no
    hyperparameter ever receives, and `residual` infinite.

    Args:
        burn_in: Integer `>= 0`. Defaults to `10`.
        num_samples: Integer `>= 1`. Defaults to `10`.
        warm_start: Whether the next chain starts with q. Defaults to `True`.
        outer_every: Integer `>= 1`, as in `HPOSGLD`. Defaults to `1`.
        hessian_product: `"exact"` (default), or `"difference"`: H q from one
            more gradient, right to two or three digits in float32.
        damping: Float `>= 0`, added to the diagonal of H. Above the most
            negative curvature, q does not diverge. Defaults to `0.0`.
        curvature: `"hessian"` (default), or `"gauss_newton"`: that matrix in
            place of H, which has no negative curvature. A problem that is not a
            Keras model calls `keras_hposgld.mark_predictions`.

    Raises:
        ValueError: If an argument is out of range, unknown or of no use.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.AdjointSGLD(burn_in=50, num_samples=200)
    ```
    """

    copies = (7, 3)  # theta and q before and after, a gradient, v, H q
    residual_name = (
        "the adjoint q of `AdjointSGLD`, which diverged (take `damping=`, "
        '`curvature="gauss_newton"` or a smaller learning rate)'
    )

    def __init__(
        self,
        burn_in: int = 10,
        num_samples: int = 10,
        warm_start: bool = True,
        outer_every: int = 1,
        hessian_product: str = "exact",
        damping: float = 0.0,
        curvature: str = "hessian",
    ):
        self._set_lengths(burn_in, num_samples, outer_every)
        self.warm_start = self.remembers = bool(warm_start)
        known = PRODUCTS if curvature == "hessian" else PRODUCTS[:1]
        check_known("hessian_product", hessian_product, known)
        self.hessian_product = hessian_product
        self.damping = check_number("damping", damping)
        self.curvature = check_known("curvature", curvature, CURVATURES)
        self.takes_single_steps = self._is_exact

    def begin(self, chain: Chain, params: list) -> Adjoint:
        refuse_moving_start(self, chain.problem, "it forgets the start")
        kept, zero = list(chain.kept), tf.zeros([], params[0].dtype)
        q = kept[: len(params)] or zeros_like(params)
        w = zeros_like(params) if chain.sampler.momentum else []
        return Adjoint(q, kept[len(params) :] or w, zero, zero)

    def sources(self, chain: Chain, own: Adjoint, position: Position) -> list:
        params = position.params if self._is_exact else []
        return [*chain.hyperparameters, *params]

    @property
    def _is_exact(self) -> bool:
        return (self.curvature, self.hessian_product) == ("hessian", "exact")

    def share_seen(self, rate: tf.Tensor, momentum: float) -> tf.Tensor:
        if self.warm_start:  # from chain to chain it comes to see all
            return tf.ones_like(rate)
        return share_seen.after(self.burn_in + (self.num_samples - 1) / 2, rate)

    def contribute(self, chain: Chain, own: Adjoint, step: Step) -> tuple:
        """The sample's q . C, and then q after the step."""
        inner, at, hessian_q = step.inner, step.before, None
        if not self._is_exact:
            hessian_q = other_hessian_product(
                chain, inner, at, step.inner_batch, own.q, self.curvature
            )
        mixed, hessian_q = law_products(
            chain, inner, at, step.scales, own.q, hessian_q
        )
        hessian_q = plus_scaled(hessian_q, self.damping, own.q)
        force = plus_scaled(hessian_q, -1.0, step.outer.v)
        q, w = step.scales.move(own.q, own.w, force)
        if step.after.unprojected:
            p = step.scales.inverse(q)
            p = chain.pulled(p, step.after.unprojected)
            q = step.scales.effective(p)
            force = plus_scaled(p, -1.0, step.scales.inverse(own.q))
        largest = tf.maximum(own.largest_v, norm(step.outer.v))
        return Adjoint(q, w, norm(force), largest), mixed

    def conclude(self, chain: Chain, state: SampledState) -> dict:
        own = state.own
        good = own.residual <= DIVERGED * own.largest_v
        residual = tf.math.divide_no_nan(own.residual, own.largest_v)
        h = scaled(1.0 / self.num_samples, state.h)
        return {
            "hypergradient": [tf.where(good, t, t * np.nan) for t in h],
            "residual": tf.where(good, residual, np.inf),
            "kept": [*own.q, *own.w] if self.remembers else (),
        }
