"""First derivatives of the inner objective: one backward pass a step.

They are all that an estimator needs which differentiates the density
exp(-L_T / tau) itself, and not the path of a chain.
"""

from typing import Any

import tensorflow as tf

from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.core.derivatives import value_and_gradients
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.position import Position


def first_derivatives(
    chain: Chain, position: Position, batch: Any
) -> LinearizedGradient:
    """The inner objective with its derivatives by both arguments.

    Args:
        chain: `Chain`.
        position: `Position`.
        batch: The batch of the inner objective.

    Returns:
        `LinearizedGradient`, whose pullback ignores its argument and returns
        the score dL_T/dlambda: a list like the hyperparameters, `None` where
        there is no dependence.
    """
    carried = []

    def inner_objective(params: list) -> tf.Tensor:
        value, carry = chain.problem.inner(
            chain.hyperparameters, params, batch, position.carry
        )
        carried.append(carry)
        return value

    value, score, gradient = value_and_gradients(
        inner_objective,
        list(chain.hyperparameters),
        position.params,
        chain.problem.loss_scale,
    )
    score, gradient = chain.mean(score, gradient)
    return LinearizedGradient(value, carried[0], gradient, lambda vector: score)


def law_temperature(estimator: Any, chain: Chain, why: str) -> float:
    """The temperature of the law that a chain samples.

    Args:
        estimator: `HypergradientEstimator`.
        chain: `Chain`.
        why: String, what needs it.

    Raises:
        ValueError: If the sampler has no noise.
    """
    temperature = chain.sampler.law_temperature
    if not temperature:
        raise ValueError(
            f"`{type(estimator).__name__}` needs a temperature above 0: {why}. "
            f"Received: sampler={chain.sampler!r}, whose law has none. Use "
            "`SGLD(temperature=...)`."
        )
    return temperature
