"""Reverse-mode differentiation through the inner steps.

The weights of the last K steps are kept and the chain is walked back from its
end: with the adjoint a = df/dtheta at the last weights, each step adds
-alpha a . d2L_T/dtheta dlambda to the hypergradient and turns a into
a - alpha a . H. Exact for K = `num_steps`; its memory grows with K.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import vector_jacobian_product
from keras_hposgld.core.loop import run_pooling_steps
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators import descent
from keras_hposgld.estimators.estimator import batch_at
from keras_hposgld.estimators.estimator import Chain
from keras_hposgld.estimators.estimator import check_count
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.estimator import register


class RMDState(NamedTuple):
    """The chain, and the weights and carries that it went through."""

    now: descent.DescentState
    path: Any


@register("rmd")
class RMD(HypergradientEstimator):
    """Differentiation of the unrolled chain, backward.

    Args:
        truncation: Integer `>= 1`: how many of the last steps to walk back.
            `None` (default): all of them, which is exact. With fewer, the
            dependence of the chain's start is left out.
        num_steps: Integer `>= 1`, inner steps. Defaults to `20`.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        Franceschi, Donini, Frasconi and Pontil, ICML 2017.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.RMD(num_steps=50, truncation=10)
    ```
    """

    def __init__(self, truncation: int | None = None, num_steps: int = 20):
        self.num_steps = check_count("num_steps", num_steps, 1)
        if truncation is not None:
            check_count("truncation", truncation, 1)
            if truncation > num_steps:
                raise ValueError(
                    "`truncation` must be at most `num_steps`. Received: "
                    f"truncation={truncation}, num_steps={num_steps}."
                )
        self.truncation = truncation

    @property
    def num_kept(self) -> int:
        """How many steps are walked back."""
        return self.truncation or self.num_steps

    def init(self, chain: Chain, params: list) -> RMDState:
        now = descent.start(chain, params)
        path = tf.nest.map_structure(
            lambda x: tf.TensorArray(
                x.dtype,
                size=self.num_kept,
                element_shape=x.shape,
                clear_after_read=False,
            ),
            (now.params, now.carry),
        )
        return RMDState(now, path)

    def step(
        self, chain: Chain, state, index, inner_batch, outer_batch
    ) -> RMDState:
        # Steps before the last K overwrite one another in the first place.
        place = tf.maximum(index - (self.num_steps - self.num_kept), 0)
        path = tf.nest.map_structure(
            lambda kept, x: kept.write(place, x),
            state.path,
            (state.now.params, state.now.carry),
        )
        return RMDState(
            descent.descend(chain, state.now, index, inner_batch), path
        )

    def finish(
        self, chain: Chain, state, inner_batches, outer_batches
    ) -> Estimate:
        hypers, now = list(chain.hyperparameters), state.now
        f, direct, v = descent.outer_at_end(
            chain, now, outer_batches, self.num_steps
        )
        first = self.num_steps - self.num_kept

        def walk_back(so_far, number):
            adjoint, h = so_far
            index = self.num_steps - 1 - number
            params, carry = tf.nest.map_structure(
                lambda kept: kept.read(index - first), state.path
            )
            inner = descent.linearize_inner(
                chain,
                params,
                carry,
                batch_at(inner_batches, index),
                [*hypers, *params],
            )
            products = inner.pullback(adjoint)
            chain.report_unused(products[: len(hypers)], direct)
            alpha = chain.learning_rate(index, params[0].dtype)
            return (
                plus_scaled(adjoint, -alpha, products[len(hypers) :]),
                plus_scaled(h, -alpha, products[: len(hypers)]),
            )

        adjoint, h = run_pooling_steps(
            walk_back, (v, plus(zeros_like(hypers), direct)), self.num_kept
        )
        start = chain.problem.initial_params
        if start is not None and self.num_kept == self.num_steps:
            h = plus(h, vector_jacobian_product(start, hypers, adjoint))
        return Estimate(
            hypergradient=h,
            params=now.params,
            inner_loss=now.inner_loss,
            outer_loss=f,
            carry=now.carry,
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        # The path; at its end the adjoint, a gradient and H times it.
        return self.num_kept + 4, 2

    def get_config(self) -> dict:
        return {"truncation": self.truncation, "num_steps": self.num_steps}


@register("rmd_fo")
class RMDFO(RMD):
    """Reverse-mode differentiation of the last step alone.

    Args:
        num_steps: Integer `>= 1`, inner steps. Defaults to `20`.

    Raises:
        ValueError: If `num_steps` is out of range.

    Reference:
        Luketina, Berglund, Greff and Raiko, ICML 2016.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.RMDFO(num_steps=50)
    ```
    """

    def __init__(self, num_steps: int = 20):
        super().__init__(truncation=1, num_steps=num_steps)

    def get_config(self) -> dict:
        return {"num_steps": self.num_steps}
