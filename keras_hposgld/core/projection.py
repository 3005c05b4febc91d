"""Projections of the params, and their derivatives.

A projection P puts a list of tensors where they may be, such as at or above
zero, each tensor by itself. What is not projected stands for itself in P and
has `()` in the lists here, which are parts of the state of a loop.

A derivative of P is taken at the params *before* the projection. Afterwards one
could not tell a bound that holds a weight from a weight that happens to be
there.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_hposgld.core.derivatives import directional_derivative
from keras_hposgld.core.derivatives import vector_jacobian_product


def project(function: Callable | None, params: list) -> tuple[list, list]:
    """Projects params.

    Args:
        function: Function from a list of tensors to where it puts them, with
            `None`, or the tensor itself, for one that is free. `None`: all
            are.
        params: List of tensors.

    Returns:
        The list of projected tensors, and a list of what they were before,
        `()` where a tensor is free; empty if all are.
    """
    if function is None:
        return params, []
    after, before = [], []
    for param, put in zip(params, function(list(params)), strict=True):
        is_free = put is None or put is param
        after.append(param if is_free else tf.cast(put, param.dtype))
        before.append(() if is_free else param)
    return after, before


def pull_back(function: Callable, before: list, vector: list) -> list:
    """`vector . dP / d params`.

    Args:
        function: As for `project`.
        before: List of tensors, the second result of `project`.
        vector: List of tensors like the params.
    """
    restricted, inputs, numbers = _restricted(function, before, vector)
    pulled = list(vector)
    products = vector_jacobian_product(
        restricted, inputs, [vector[n] for n in numbers]
    )
    for n, product in zip(numbers, products, strict=True):
        pulled[n] = tf.zeros_like(vector[n]) if product is None else product
    return pulled


def push_forward(function: Callable, before: list, vector: list) -> list:
    """`dP / d params . vector`, see `pull_back`."""
    restricted, inputs, numbers = _restricted(function, before, vector)
    pushed = list(vector)
    products = directional_derivative(
        restricted, inputs, [vector[n] for n in numbers]
    )
    for n, product in zip(numbers, products, strict=True):
        pushed[n] = product
    return pushed


def _restricted(
    function: Callable, before: list, like: list
) -> tuple[Callable, list, list[int]]:
    """The projection of what is not free, the inputs, and which they are."""
    numbers = [n for n, x in enumerate(before) if tf.is_tensor(x)]

    def restricted(inputs: list) -> list:
        params = list(like)  # whose values do not matter where they are free
        for n, value in zip(numbers, inputs, strict=True):
            params[n] = value
        projected = function(params)
        return [projected[n] for n in numbers]

    return restricted, [_off_zero(before[n]) for n in numbers], numbers


def _off_zero(x: tf.Tensor) -> tf.Tensor:
    """The tensor with zeros a little above, where norms have a derivative.

    A root of a sum of squares has none at zero, and TensorFlow makes no number
    of it. So small a number changes no other derivative.
    """
    tiny = 4.0 * np.sqrt(np.finfo(x.dtype.as_numpy_dtype).tiny)
    return tf.where(x == 0, tf.constant(tiny, x.dtype), x)
