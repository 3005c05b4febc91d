"""AdjointSGLD: this project's own estimator, right over long chains.

HPO-SGLD leaves out how the inner dynamics forget. This estimator keeps it, by
one more vector q of the size of the weights. With v = df/dtheta, H the Hessian
of the inner objective L_T and C = d2L_T/dtheta dlambda, all of them at the
theta^m where a step of the chain begins, each step

    takes the sample       df/dlambda - q . C,
    and then moves q along the force H q - v, by the sampler's own step without
    its noise:             w <- mu w + A (H q - v),    q <- q - B w.

So a sample pairs C with the q of *before* the step: the derivative of the chain
is a sum over the steps before it. q is the adjoint of the chain, run forward in
time, which a reversible law allows. At temperature 0 it solves H q = v while
the weights converge, as SOBA does (Dagreou et al., 2022). The derivation is in
the documentation.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.core.vectors import norm
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import scaled
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.chain import refuse_moving_start
from keras_hposgld.estimators.law import curvature_product
from keras_hposgld.estimators.law import difference_product
from keras_hposgld.estimators.law import law_products
from keras_hposgld.estimators.registry import register
from keras_hposgld.estimators.sampled import SampledEstimator
from keras_hposgld.estimators.sampled import SampledState
from keras_hposgld.estimators.sampled import Step

CURVATURES = ("hessian", "gauss_newton")
HESSIAN_PRODUCTS = ("exact", "difference")
# A linear solve starts at a residual of 1 and falls. Above this, q has grown
# along a direction of negative curvature or under too large a step.
DIVERGED = 1e3


class Adjoint(NamedTuple):
    """What the recursion keeps beside h."""

    q: list
    w: list  # the velocity of q; empty without momentum
    residual: tf.Tensor  # |H q - v| of the last step
    largest_v: tf.Tensor  # the largest |v| so far


@register("adjoint_sgld")
class AdjointSGLD(SampledEstimator):
    """A forward adjoint over an SGLD chain.

    An inner step costs one of HPO-SGLD and a product with the Hessian of the
    inner objective. The estimate forgets where the chain started. The chain has
    to mix without crossing barriers: between separated wells no local estimator
    is right (measured in the documentation). Where q diverges the estimate is
    NaN, which no hyperparameter ever receives, and `residual` infinite.

    Args:
        burn_in: Integer `>= 0`. Defaults to `10`.
        num_samples: Integer `>= 1`. Defaults to `10`.
        warm_start: Whether q is kept from one outer iteration to the next, by
            `BilevelModel` and by `hypergradient(previous=...)`. Defaults to
            `True`.
        outer_every: Integer `>= 1`: the outer gradient is recomputed every
            `outer_every` steps, and at the first, and reused in between. That
            costs one more copy of the weights. Defaults to `1`.
        hessian_product: `"exact"` (default), or `"difference"`: H q from one
            more gradient, a little further along q. In float32 it is right to
            about three digits, to two across the kinks of ReLUs.
        damping: Float `>= 0`, added to the diagonal of H: a diverging q comes
            back where it exceeds the most negative curvature. Defaults to
            `0.0`.
        curvature: `"hessian"` (default), or `"gauss_newton"`: the generalized
            Gauss-Newton matrix in place of H, which has no negative curvature.
            A problem that is not a Keras model calls
            `keras_hposgld.mark_predictions` in its inner objective.

    Raises:
        ValueError: If a number is out of range, a name is unknown, both
            `hessian_product` and `curvature` are not the default, or the
            problem has `initial_params`.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.AdjointSGLD(burn_in=50, num_samples=200)
    ```
    """

    residual_name = (
        "the adjoint q of `AdjointSGLD`, which diverges where the curvature is "
        "negative or the learning rate too large (take `damping=`, "
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
        self.hessian_product = check_known(
            "hessian_product", hessian_product, HESSIAN_PRODUCTS
        )
        self.damping = check_number("damping", damping)
        self.curvature = check_known("curvature", curvature, CURVATURES)
        if curvature != "hessian" and hessian_product != "exact":
            raise ValueError(
                '`hessian_product` must be "exact" with `curvature='
                f'"{curvature}"`, which needs no Hessian. Received: '
                f"hessian_product={hessian_product!r}."
            )

    def begin(self, chain: Chain, params: list) -> Adjoint:
        refuse_moving_start(
            self, chain.problem, "it forgets where the chain started"
        )
        kept, zero = list(chain.memory), tf.zeros([], params[0].dtype)
        q = kept[: len(params)] or zeros_like(params)
        w = zeros_like(params) if chain.sampler.momentum else []
        return Adjoint(q, kept[len(params) :] or w, zero, zero)

    def sources(self, chain: Chain, own: Adjoint, position) -> list:
        exact = (self.curvature, self.hessian_product) == ("hessian", "exact")
        return [*chain.hyperparameters, *(position.params if exact else [])]

    def contribute(self, chain: Chain, own: Adjoint, step: Step) -> tuple:
        """The sample's q . C, and then q after the step."""
        inner, before, hessian_q = step.inner, step.before, None
        if self.curvature == "gauss_newton":
            hessian_q = curvature_product(
                chain, before, step.inner_batch, own.q
            )
        elif self.hessian_product == "difference":
            hessian_q = difference_product(
                chain, inner, before, step.inner_batch, own.q
            )
        mixed, hessian_q = law_products(
            chain, inner, before, step.scales, own.q, hessian_q
        )
        hessian_q = plus_scaled(hessian_q, self.damping, own.q)
        # One sum, not two in a row: TensorFlow's optimizers make a temporary
        # variable of three summands, which fails in a loop of large tensors.
        force = plus_scaled(hessian_q, -1.0, step.outer.v)
        w = step.scales.force(force)
        if own.w:
            w = plus_scaled(w, chain.sampler.momentum, own.w)
        q = plus_scaled(own.q, -1.0, step.scales.velocity(w))
        if (direct := step.scales.direct(force)) is not None:
            q = plus_scaled(q, -1.0, direct)
        return Adjoint(
            q,
            w if own.w else [],
            norm(force),
            tf.maximum(own.largest_v, norm(step.outer.v)),
        ), mixed

    def conclude(self, chain: Chain, state: SampledState) -> dict:
        own = state.own
        diverged = ~(own.residual <= DIVERGED * own.largest_v)
        bad = tf.constant(float("nan"), own.residual.dtype)
        return {
            "hypergradient": [
                tf.where(diverged, tf.cast(bad, total.dtype), total)
                for total in scaled(1.0 / self.num_samples, state.h)
            ],
            "residual": tf.where(
                diverged,
                tf.constant(float("inf"), own.residual.dtype),
                tf.math.divide_no_nan(own.residual, own.largest_v),
            ),
            "memory": [*own.q, *own.w] if self.remembers else (),
        }

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        # theta and q before and after, a gradient, v, H q (and v of before).
        return 7 + (self.outer_every > 1), 3

    def get_config(self) -> dict:
        return {
            "burn_in": self.burn_in,
            "num_samples": self.num_samples,
            "warm_start": self.warm_start,
            "outer_every": self.outer_every,
            "hessian_product": self.hessian_product,
            "damping": self.damping,
            "curvature": self.curvature,
        }
