"""Implicit differentiation at the last iterate of the chain.

Where the inner objective is stationary, the implicit function theorem gives
df/dlambda - v . H^-1 . C with v = df/dtheta, H the Hessian of the inner
objective and C = d2L_T/dtheta dlambda. The system H x = v is solved by a
Neumann series (Lorraine et al., 2020) or by conjugate gradients (Rajeswaran et
al., 2019), one product with H for each step of the estimator's second loop.

It is a property of the objective, so that clipping does not enter, and a
decoupled decay is the penalty that it amounts to (`law.py`).
"""

import abc
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_number
from keras_hposgld.core.linear_solvers import ConjugateGradient
from keras_hposgld.core.linear_solvers import NeumannSeries
from keras_hposgld.core.loop import batch_at
from keras_hposgld.core.vectors import pack
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import unpack
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators import descent
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.law import law_products
from keras_hposgld.estimators.registry import register


class Solving(NamedTuple):
    """The end of the chain, and how far the linear system is solved."""

    now: descent.DescentState
    outer_loss: tf.Tensor
    direct: list  # df/dlambda, packed
    system: Any


class ImplicitEstimator(HypergradientEstimator):
    """What the two solvers have in common; see `IFTNeumann` and `IFTCG`."""

    serves_replicas = True
    damping = 0.0

    @property
    @abc.abstractmethod
    def solver(self) -> ConjugateGradient | NeumannSeries:
        """A solver of `core.linear_solvers`."""

    @property
    def num_closing_steps(self) -> int:  # type: ignore[override]
        """One product with the Hessian each."""
        return self.solver.num_steps

    def init(self, chain: Chain, params: list) -> descent.DescentState:
        if chain.problem.project is not None:
            raise ValueError(
                f"`{type(self).__name__}` cannot serve weights with a "
                "constraint: where one holds, the gradient of the inner "
                "objective is not zero, and the linear system another one. "
                f"Received: estimator={self!r} and a problem with `project`. "
                'Use "adjoint_sgld", which solves that system, or "rmd".'
            )
        return descent.start(chain, params)

    def step(
        self,
        chain: Chain,
        state: descent.DescentState,
        index: Any,
        inner_batch: Any,
        outer_batch: Any,
    ) -> descent.DescentState:
        return descent.descend(chain, state, index, inner_batch)

    def turn(
        self,
        chain: Chain,
        state: descent.DescentState,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Solving:
        outer = descent.outer_at_end(
            chain, state.position, outer_batches, self.num_steps
        )
        return Solving(
            state,
            outer.value,
            pack(outer.direct),
            self.solver.start(outer.v),
        )

    def close(
        self,
        chain: Chain,
        state: Solving,
        number: Any,
        inner_batches: Any,
        _: Any,
    ) -> Solving:
        def matvec(vector: list) -> list:
            _, product = self._products(chain, state.now, inner_batches, vector)
            return plus_scaled(product, self.damping, vector)

        return state._replace(
            system=self.solver.step(state.system, number, matvec)
        )

    def _products(
        self,
        chain: Chain,
        now: descent.DescentState,
        inner_batches: Any,
        vector: list,
    ) -> tuple:
        """A vector times the mixed derivative, and the Hessian times it."""
        index, position = self.num_steps - 1, now.position
        # Linearized within the loop: a tape from outside of a `tf.while_loop`
        # cannot be asked from within.
        inner = chain.linearize(
            position,
            batch_at(inner_batches, index),
            [*chain.hyperparameters, *position.params],
        )
        scales = chain.scales(position.sampler_state, index)
        return law_products(chain, inner, position, scales, vector)

    def finish(
        self,
        chain: Chain,
        state: Solving,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Estimate:
        x, residual = self.solver.solution(state.system)
        direct = unpack(state.direct)
        mixed, _ = self._products(chain, state.now, inner_batches, x)
        if all(m is None for m in mixed) and all(d is None for d in direct):
            raise ValueError(
                f"`{type(self).__name__}` would return zero for every "
                "hyperparameter: neither the gradient of the inner objective "
                "nor the outer objective depends on any. Received: "
                f"estimator={self!r}. Where they set the start of the chain, "
                'use "hpo_sgld", "rmd" or "fmd", or let the inner objective '
                "pull to the start (iMAML)."
            )
        chain.report_unused(mixed, direct)
        negative = plus_scaled(zeros_like(chain.hyperparameters), -1.0, mixed)
        return Estimate(
            hypergradient=plus(negative, direct),
            residual=residual,
            **descent.fields_of(state.now, state.outer_loss),
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        # theta, v, the solution and the best one, the solver's own two, a
        # gradient, H times.
        return 8, 1


@register("ift_neumann")
class IFTNeumann(ImplicitEstimator):
    """Implicit differentiation with a truncated Neumann series.

    Args:
        num_terms: Integer `>= 1`. Defaults to `10`.
        step_size: Float `> 0`: the series converges if it is below 2 over the
            largest curvature of the inner objective. `None` (default) takes 1
            over an estimate of that curvature, for which it spends ten more
            Hessian-vector products.
        num_steps: Integer `>= 1`, inner steps before. Defaults to `20`.

    Raises:
        ValueError: If a number is out of range, or if nothing depends on the
            hyperparameters but the start of the chain.

    Reference:
        Lorraine, Vicol and Duvenaud, AISTATS 2020.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.IFTNeumann(num_terms=20, step_size=0.1)
    ```
    """

    def __init__(
        self,
        num_terms: int = 10,
        step_size: float | None = None,
        num_steps: int = 20,
    ):
        self.num_terms = check_count("num_terms", num_terms, 1)
        self.num_steps = check_count("num_steps", num_steps, 1)
        if step_size is not None:
            step_size = check_number("step_size", step_size, False)
        self.step_size = step_size

    @property
    def solver(self) -> NeumannSeries:
        return NeumannSeries(self.num_terms, self.step_size)


@register("ift_cg")
class IFTCG(ImplicitEstimator):
    """Implicit differentiation with conjugate gradients.

    Args:
        max_iterations: Integer `>= 1`. Defaults to `10`.
        damping: Float `>= 0`, added to the Hessian's diagonal. Defaults to
            `0.0`.
        tolerance: Float `>= 0`, relative residual at which to stop. Defaults
            to `1e-6`.
        num_steps: Integer `>= 1`, inner steps before. Defaults to `20`.

    Raises:
        ValueError: As for `IFTNeumann`.

    Reference:
        Rajeswaran, Finn, Kakade and Levine, NeurIPS 2019.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.IFTCG(max_iterations=20, damping=1e-3)
    ```
    """

    def __init__(
        self,
        max_iterations: int = 10,
        damping: float = 0.0,
        tolerance: float = 1e-6,
        num_steps: int = 20,
    ):
        self.max_iterations = check_count("max_iterations", max_iterations, 1)
        self.num_steps = check_count("num_steps", num_steps, 1)
        self.damping = check_number("damping", damping)
        self.tolerance = check_number("tolerance", tolerance)

    @property
    def solver(self) -> ConjugateGradient:
        return ConjugateGradient(self.max_iterations, self.tolerance)
