"""AdjointSGLD: this project's own estimator, right over long chains.

HPO-SGLD leaves out how the inner dynamics forget. This estimator keeps it, by
one more vector q of the size of the weights. With v = df/dtheta, H the Hessian
of the inner objective L_T, and all derivatives at the theta where a step of the
chain begins,

    q <- q - alpha (H q - v)
    h <- h + (df/dlambda - q . d2L_T/dtheta dlambda) / M, after B steps.

q is the adjoint of the chain, run forward in time: stationary overdamped
Langevin dynamics is reversible, so the adjoint, which by rights runs backward
along the path, has the law of one that runs forward. So h is unbiased as alpha
goes to 0, at any finite temperature and for any length of the chain. At
temperature 0 it solves H q = v while the weights converge, as SOBA does
(Dagreou et al., 2022). The derivation is in the documentation.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import difference_along
from keras_hposgld.core.vectors import component_along
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators.batch_means import BatchMeans
from keras_hposgld.estimators.descent import linearize_inner
from keras_hposgld.estimators.estimator import Chain
from keras_hposgld.estimators.estimator import check_count
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.estimator import refuse_moving_start
from keras_hposgld.estimators.estimator import register
from keras_hposgld.estimators.outer_gradient import outer_gradient
from keras_hposgld.estimators.outer_gradient import unknown
from keras_hposgld.estimators.sampled_losses import SampledLosses

HESSIAN_PRODUCTS = ("exact", "difference")


class AdjointSGLDState(NamedTuple):
    """What the next step needs. Sums run over the samples."""

    params: list
    carry: Any
    q: list
    h: list
    outer: Any  # f and its derivatives, where they are not renewed each step
    losses: SampledLosses
    error: BatchMeans


@register("adjoint_sgld")
class AdjointSGLD(HypergradientEstimator):
    """A forward adjoint over an SGLD chain.

    An inner step costs what one of HPO-SGLD costs and a product with the
    Hessian of the inner objective. It forgets where the chain started. It needs
    a chain that mixes without crossing barriers: between separated wells no
    local estimator is right, and on the way over a barrier q explodes, so that
    the mean rests on rare huge values (measured in the documentation).

    Args:
        burn_in: Integer `>= 0`. Defaults to `10`.
        num_samples: Integer `>= 1`. Defaults to `10`.
        warm_start: Whether `BilevelModel` keeps q from one outer iteration to
            the next. Defaults to `True`. (`hypergradient` is a pure function:
            there q starts at zero.)
        outer_every: Integer `>= 1`: the outer gradient is computed at every
            so many steps, and at the first, and taken for unchanged in
            between, which costs one more copy of the weights. Defaults to
            `1`.
        hessian_product: How H q is made. `"exact"` (default): from the tape
            of the inner gradient, at the cost of two gradients. `"difference"`:
            from one more gradient, a little further along q. In float32 it is
            right to about three digits for smooth networks, to two across the
            kinks of ReLUs.

    Raises:
        ValueError: If a number is out of range, `hessian_product` is unknown,
            or the problem has `initial_params`.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.AdjointSGLD(burn_in=50, num_samples=200)
    ```
    """

    serves_replicas = True

    def __init__(
        self,
        burn_in: int = 10,
        num_samples: int = 10,
        warm_start: bool = True,
        outer_every: int = 1,
        hessian_product: str = "exact",
    ):
        self.burn_in = check_count("burn_in", burn_in, 0)
        self.num_samples = check_count("num_samples", num_samples, 1)
        self.warm_start = bool(warm_start)
        self.remembers = self.warm_start
        self.outer_every = check_count("outer_every", outer_every, 1)
        if hessian_product not in HESSIAN_PRODUCTS:
            raise ValueError(
                f"`hessian_product` must be one of {HESSIAN_PRODUCTS}. "
                f"Received: hessian_product={hessian_product!r}."
            )
        self.hessian_product = hessian_product
        self.num_steps = self.burn_in + self.num_samples

    def init(self, chain: Chain, params: list) -> AdjointSGLDState:
        refuse_moving_start(
            self, chain.problem, "it forgets where the chain started"
        )
        return AdjointSGLDState(
            params=params,
            carry=chain.problem.initial_carry,
            q=list(chain.memory) or zeros_like(params),
            h=zeros_like(chain.hyperparameters),
            outer=unknown(chain, params, self.outer_every),
            losses=SampledLosses.zero(self.num_samples, params[0].dtype),
            error=BatchMeans.zero(chain.hyperparameters[0].dtype),
        )

    def step(
        self, chain: Chain, state, index, inner_batch, outer_batch
    ) -> AdjointSGLDState:
        hypers, params = list(chain.hyperparameters), state.params
        dtype = params[0].dtype

        def inner_at(params, sources):
            return linearize_inner(
                chain, params, state.carry, inner_batch, sources
            )

        exact = self.hessian_product == "exact"
        inner = inner_at(params, [*hypers, *params] if exact else hypers)
        (f, direct, v), outer = outer_gradient(
            chain,
            lambda params: chain.problem.outer(
                hypers, params, outer_batch, inner.carry
            ),
            params,
            state.outer,
            index,
            self.num_steps,
            self.outer_every,
        )
        alpha = chain.learning_rate(index, dtype)
        if exact:
            hessian_q = inner.pullback(state.q)[len(hypers) :]
        else:
            hessian_q = difference_along(
                lambda params: inner_at(params, sources=[]).gradient,
                *(params, inner.gradient, state.q),
            )
        (f, value), v, hessian_q = chain.mean([f, inner.value], v, hessian_q)
        # One sum, not two in a row: TensorFlow's optimizers make a temporary
        # variable of three summands, which fails in a loop of large tensors.
        residual = plus_scaled(v, -1.0, hessian_q)
        q = plus_scaled(state.q, alpha, residual)
        mixed, direct = chain.mean(inner.pullback(q)[: len(hypers)], direct)
        chain.report_unused(mixed, direct)
        sample = plus(plus_scaled(zeros_like(hypers), -1.0, mixed), direct)

        number = index + 1 - self.burn_in
        sampled = tf.cast(number > 0, dtype)
        h = plus_scaled(state.h, sampled, sample)
        return AdjointSGLDState(
            params=chain.move(params, inner.gradient, index),
            carry=inner.carry,
            q=q,
            h=h,
            outer=outer,
            losses=state.losses.add(value, f, number),
            error=state.error.add(
                component_along(h, sample), number, self.num_samples
            ),
        )

    def finish(
        self, chain: Chain, state, inner_batches, outer_batches
    ) -> Estimate:
        return Estimate(
            hypergradient=[total / self.num_samples for total in state.h],
            params=state.params,
            inner_loss=state.losses.inner_mean,
            outer_loss=state.losses.outer_mean,
            standard_error=state.error.standard_error(self.num_samples),
            carry=state.carry,
            memory=state.q if self.remembers else (),
            outer_losses=state.losses.outer,
        )

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
        }
