"""Implicit differentiation at the last iterate of plain descent.

Where the inner objective is stationary, the implicit function theorem gives
df/dlambda - v . H^-1 . d2L_T/dtheta dlambda with v = df/dtheta and H the
Hessian of the inner objective. The system H x = v is solved by a Neumann series
(Lorraine et al., 2020) or by conjugate gradients (Rajeswaran et al., 2019).
"""

import abc

import tensorflow as tf

from keras_hposgld.core.linear_solvers import conjugate_gradient
from keras_hposgld.core.linear_solvers import largest_curvature
from keras_hposgld.core.linear_solvers import neumann_series
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators import descent
from keras_hposgld.estimators.estimator import batch_at
from keras_hposgld.estimators.estimator import Chain
from keras_hposgld.estimators.estimator import check_count
from keras_hposgld.estimators.estimator import check_number
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.estimator import register


class ImplicitEstimator(HypergradientEstimator):
    """What the two solvers have in common; see `IFTNeumann` and `IFTCG`."""

    @abc.abstractmethod
    def solve(self, matvec, rhs: list) -> tuple[list, tf.Tensor]:
        """Solves `matvec(x) = rhs`: the solution and its residual."""

    def init(self, chain: Chain, params: list):
        return descent.start(chain, params)

    def step(self, chain: Chain, state, index, inner_batch, outer_batch):
        return descent.descend(chain, state, index, inner_batch)

    def finish(
        self, chain: Chain, state, inner_batches, outer_batches
    ) -> Estimate:
        hypers, params = list(chain.hyperparameters), state.params
        f, direct, v = descent.outer_at_end(
            chain, state, outer_batches, self.num_steps
        )

        def linearized():
            return descent.linearize_inner(
                chain,
                params,
                state.carry,
                batch_at(inner_batches, self.num_steps - 1),
                [*hypers, *params],
            )

        def matvec(vector):
            # Linearized within the solver's loop: a tape from outside of a
            # `tf.while_loop` cannot be asked from within.
            products = linearized().pullback(vector)[len(hypers) :]
            return plus(zeros_like(vector), products)

        x, residual = self.solve(matvec, v)
        mixed = linearized().pullback(x)[: len(hypers)]
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
        negative = plus_scaled(zeros_like(hypers), -1.0, mixed)
        return Estimate(
            hypergradient=plus(negative, direct),
            params=params,
            inner_loss=state.inner_loss,
            outer_loss=f,
            carry=state.carry,
            residual=residual,
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        # theta, v, the solution, the solver's own two, a gradient, H times.
        return 7, 1


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
            check_number("step_size", step_size, zero_allowed=False)
        self.step_size = step_size

    def solve(self, matvec, rhs: list) -> tuple[list, tf.Tensor]:
        step_size = self.step_size
        if step_size is None:
            step_size = tf.math.divide_no_nan(
                tf.ones([], rhs[0].dtype), largest_curvature(matvec, rhs)
            )
        return neumann_series(matvec, rhs, self.num_terms, step_size)

    def get_config(self) -> dict:
        return {
            "num_terms": self.num_terms,
            "step_size": self.step_size,
            "num_steps": self.num_steps,
        }


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

    def solve(self, matvec, rhs: list) -> tuple[list, tf.Tensor]:
        def damped(vector):
            return plus_scaled(matvec(vector), self.damping, vector)

        return conjugate_gradient(
            damped, rhs, self.max_iterations, self.tolerance
        )

    def get_config(self) -> dict:
        return {
            "max_iterations": self.max_iterations,
            "damping": self.damping,
            "tolerance": self.tolerance,
            "num_steps": self.num_steps,
        }
