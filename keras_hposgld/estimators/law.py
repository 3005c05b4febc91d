"""Second derivatives of the law that a chain samples, times a vector.

The stationary estimators differentiate a property of the law, not the path of a
chain. So the gradient is taken without clipping, and a decoupled decay d is the
penalty that it amounts to where the chain stands still,

    S grad L_T + alpha d = 0,   that is   grad L_T + S^-1 alpha d = 0,

with S what a constant force moves the weights by. Under SGLD S is alpha and d
the gradient of a penalty; under PSGLD and the adaptive optimizers the penalty
is one in the metric of their preconditioner, which is held fixed.
"""

from typing import Any

from keras_hposgld.core.derivatives import difference_along
from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.core.gauss_newton import gauss_newton_product
from keras_hposgld.core.vectors import add
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.scales import Scales


def law_products(
    chain: Chain,
    inner: LinearizedGradient,
    position: Position,
    scales: Scales,
    vector: list,
    hessian_product: list | None = None,
) -> tuple:
    """A vector times the mixed derivative, and the Hessian times it.

    Args:
        chain: `Chain`.
        inner: `LinearizedGradient` at the position. Its sources are the
            hyperparameters and, without `hessian_product`, the params: then
            one pullback gives both.
        position: `Position`.
        scales: `Scales` of the step there.
        vector: List of tensors shaped like the params.
        hessian_product: List of tensors, the Hessian of the inner objective
            times the vector, where it is made in another way.

    Returns:
        A list like the hyperparameters, with `None` where there is no
        dependence, and a list like the params.
    """
    products = chain.mean(inner.pullback(vector))
    number = len(chain.hyperparameters)
    mixed = products[:number]
    hessian = products[number:] if hessian_product is None else hessian_product
    if chain.decay(list(chain.hyperparameters), position.params):
        by_lambda, by_theta = chain.decay_products(
            position.params, scales.inverse(vector), scales
        )
        mixed, hessian = add(mixed, by_lambda), add(hessian, by_theta)
    return mixed, with_zeros(hessian, vector)


def other_hessian_product(
    chain: Chain,
    inner: LinearizedGradient,
    position: Position,
    batch: Any,
    vector: list,
    curvature: str,
) -> list:
    """The Hessian times a vector, or what stands for it, without a tape of it.

    Args:
        chain: `Chain`.
        inner: `LinearizedGradient` at the position.
        position: `Position`.
        batch: The batch of the inner objective.
        vector: List of tensors shaped like the params.
        curvature: `"gauss_newton"`: that matrix times the vector. Else: the
            Hessian, by one more gradient a little further along the vector.
    """

    def at(params: list) -> Position:
        return position._replace(params=params)

    if curvature != "gauss_newton":
        return difference_along(
            lambda params: chain.linearize(at(params), batch, []).gradient,
            position.params,
            inner.gradient,
            vector,
        )
    product = gauss_newton_product(
        lambda params: chain.problem.inner(
            chain.hyperparameters, params, batch, position.carry
        )[0],
        position.params,
        vector,
        chain.problem.loss_scale,
    )
    return chain.mean(product)
