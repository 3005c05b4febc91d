"""The hypergradient of a chain whose start is learned, to first order.

With v = df/dtheta where the chain ended and D0 = dtheta^0/dlambda, it is
df/dlambda + v . D0: the Jacobian of the inner steps is approximated by the
identity, so no second derivative is needed. Hyperparameters that enter the
inner objective get no gradient through it.
"""

from typing import Any

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.derivatives import vector_jacobian_product
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.estimators import descent
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.registry import register


@register("first_order")
class FirstOrder(HypergradientEstimator):
    """First-order MAML: the outer gradient at the end stands for the start's.

    It serves problems with `initial_params` alone: elsewhere it would return
    nothing but the direct derivative.

    Args:
        num_steps: Integer `>= 1`, inner steps. Defaults to `20`.

    Raises:
        ValueError: If `num_steps` is out of range; for a problem whose chain
            does not start at a function of the hyperparameters.

    Reference:
        Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast
        Adaptation of Deep Networks", ICML 2017, section 5.2.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.FirstOrder(num_steps=5)
    ```
    """

    serves_replicas = True

    def __init__(self, num_steps: int = 20):
        self.num_steps = check_count("num_steps", num_steps, 1)

    def init(self, chain: Chain, params: list) -> descent.DescentState:
        if chain.problem.initial_params is None:
            raise ValueError(
                "`FirstOrder` needs a problem with `initial_params`: without, "
                "it sees nothing of the inner steps. Received: "
                f'estimator={self!r}. Use "hpo_sgld" or "rmd".'
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

    def finish(
        self,
        chain: Chain,
        state: descent.DescentState,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Estimate:
        hypers = list(chain.hyperparameters)
        outer = descent.outer_at_end(
            chain, state.position, outer_batches, self.num_steps
        )
        through_start = vector_jacobian_product(
            chain.problem.initial_params, hypers, outer.v
        )
        return Estimate(
            hypergradient=plus(with_zeros(outer.direct, hypers), through_start),
            **descent.fields_of(state, outer.value),
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        return 4, 1
