"""Forward-mode differentiation through the inner steps.

Carries the Jacobian Z = dtheta/dlambda along the chain,
Z <- Z - alpha (H Z + d2L_T/dtheta dlambda), one direction of lambda after the
other: exact, but its time and memory grow with the number of hyperparameters.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import directional_derivative
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


class FMDState(NamedTuple):
    """The chain, and its Jacobian with one row a hyperparameter."""

    now: descent.DescentState
    jacobian: list


@register("fmd")
class FMD(HypergradientEstimator):
    """Differentiation of the unrolled chain, forward.

    Args:
        num_steps: Integer `>= 1`, inner steps. Defaults to `20`.
        max_hyperparameters: Integer `>= 1`: more are refused. Defaults to
            `1000`.

    Raises:
        ValueError: If a number is out of range, or if there are more
            hyperparameters than `max_hyperparameters`.

    Reference:
        Franceschi, Donini, Frasconi and Pontil, ICML 2017.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.FMD(num_steps=50)
    ```
    """

    def __init__(self, num_steps: int = 20, max_hyperparameters: int = 1000):
        self.num_steps = check_count("num_steps", num_steps, 1)
        self.max_hyperparameters = check_count(
            "max_hyperparameters", max_hyperparameters, 1
        )

    def init(self, chain: Chain, params: list) -> FMDState:
        hypers = list(chain.hyperparameters)
        number = sum(tensor.shape.num_elements() for tensor in hypers)
        if number > self.max_hyperparameters:
            size = sum(x.shape.num_elements() * x.dtype.size for x in params)
            raise ValueError(
                "`FMD` carries a copy of the weights for each hyperparameter. "
                f"Received: {number} hyperparameters, which would take "
                f"{number * size / 2**30:.3g} GiB, and max_hyperparameters="
                f'{self.max_hyperparameters}. Use "hpo_sgld" or "rmd", or '
                "raise `max_hyperparameters`."
            )
        if chain.problem.initial_params is None:
            jacobian = [tf.zeros([number, *x.shape], x.dtype) for x in params]
        else:
            jacobian = self._by_direction(
                hypers,
                lambda direction, row: directional_derivative(
                    chain.problem.initial_params, hypers, direction
                ),
                params,
            )
        return FMDState(descent.start(chain, params), jacobian)

    def step(
        self, chain: Chain, state, index, inner_batch, outer_batch
    ) -> FMDState:
        hypers, now = list(chain.hyperparameters), state.now

        def gradient(inputs):
            moved = chain._replace(hyperparameters=inputs[: len(hypers)])
            return descent.linearize_inner(
                moved, inputs[len(hypers) :], now.carry, inner_batch, []
            ).gradient

        change = self._by_direction(
            hypers,
            lambda direction, row: directional_derivative(
                gradient,
                [*hypers, *now.params],
                [*direction, *[z[row] for z in state.jacobian]],
            ),
            now.params,
        )
        alpha = chain.learning_rate(index, now.params[0].dtype)
        return FMDState(
            descent.descend(chain, now, index, inner_batch),
            plus_scaled(state.jacobian, -alpha, change),
        )

    def _by_direction(self, hypers, function, params):
        """Stacks `function(unit direction, its number)` over all directions."""
        sizes = [tensor.shape.num_elements() for tensor in hypers]

        def one(row):
            unit = tf.split(tf.one_hot(row, sum(sizes), dtype="float64"), sizes)
            direction = [
                tf.cast(tf.reshape(part, tensor.shape), tensor.dtype)
                for part, tensor in zip(unit, hypers, strict=True)
            ]
            return function(direction, row)

        return tf.map_fn(
            one,
            tf.range(sum(sizes)),
            fn_output_signature=[
                tf.TensorSpec(x.shape, x.dtype) for x in params
            ],
            parallel_iterations=1,
        )

    def finish(
        self, chain: Chain, state, inner_batches, outer_batches
    ) -> Estimate:
        hypers, now = list(chain.hyperparameters), state.now
        f, direct, v = descent.outer_at_end(
            chain, now, outer_batches, self.num_steps
        )
        # What the directions do not tell: whether there is any dependence.
        inner = descent.linearize_inner(
            chain,
            now.params,
            now.carry,
            batch_at(inner_batches, self.num_steps - 1),
            hypers,
        )
        chain.report_unused(inner.pullback(v), direct)
        rows = sum(tensor.shape.num_elements() for tensor in hypers)
        total = tf.add_n(
            [
                tf.cast(
                    tf.linalg.matvec(
                        tf.reshape(z, [rows, -1]), tf.reshape(part, [-1])
                    ),
                    v[0].dtype,
                )
                for z, part in zip(state.jacobian, v, strict=True)
            ]
        )
        parts = tf.split(total, [t.shape.num_elements() for t in hypers])
        indirect = [
            tf.cast(tf.reshape(part, tensor.shape), tensor.dtype)
            for part, tensor in zip(parts, hypers, strict=True)
        ]
        return Estimate(
            hypergradient=plus(plus(zeros_like(hypers), indirect), direct),
            params=now.params,
            inner_loss=now.inner_loss,
            outer_loss=f,
            carry=now.carry,
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        return 3 + 2 * num_hyperparameters, 2

    def get_config(self) -> dict:
        return {
            "num_steps": self.num_steps,
            "max_hyperparameters": self.max_hyperparameters,
        }
