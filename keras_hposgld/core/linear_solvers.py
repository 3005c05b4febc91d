"""Linear systems `matvec(x) = rhs` over vectors held as lists of tensors.

Both solvers return the solution with its relative residual,
`|rhs - matvec(x)| / |rhs|`, so that a bad solve is seen as such.
"""

from collections.abc import Callable

import tensorflow as tf

from keras_hposgld.core.vectors import dot
from keras_hposgld.core.vectors import norm
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import zeros_like


def neumann_series(
    matvec: Callable, rhs: list, num_terms: int, step_size
) -> tuple[list, tf.Tensor]:
    """`step_size * sum_k (I - step_size * A)^k rhs`, `num_terms` terms.

    It converges to the solution if `A` is symmetric, positive definite and
    `step_size * largest eigenvalue < 2`.

    Args:
        matvec: Function from a list of tensors to `A` times it.
        rhs: List of tensors.
        num_terms: Integer `>= 1`. One term is `step_size * rhs`.
        step_size: Float or scalar tensor, `> 0`.

    Returns:
        The partial sum and its relative residual.

    Reference:
        Lorraine, Vicol and Duvenaud, AISTATS 2020.
    """

    def body(k, x, residual):
        x = plus_scaled(x, step_size, residual)
        return k + 1, x, plus_scaled(rhs, -1.0, matvec(x))

    _, x, residual = tf.while_loop(
        lambda k, *_: k < num_terms,
        body,
        (tf.constant(0), zeros_like(rhs), list(rhs)),
        parallel_iterations=1,
        maximum_iterations=num_terms,
    )
    return x, _relative(residual, rhs)


def conjugate_gradient(
    matvec: Callable, rhs: list, max_iterations: int, tolerance
) -> tuple[list, tf.Tensor]:
    """The method of conjugate gradients from zero.

    It stops at a relative residual of `tolerance`, after `max_iterations`, or
    where it meets a direction without positive curvature, along which the
    method has no step; the last good iterate is returned.

    Args:
        matvec: Function from a list of tensors to `A` times it, with `A`
            symmetric.
        rhs: List of tensors.
        max_iterations: Integer `>= 1`.
        tolerance: Float `>= 0`.

    Returns:
        The solution and its relative residual.

    Reference:
        Hestenes and Stiefel, 1952.
    """
    goal = tolerance * norm(rhs)

    def unfinished(k, x, residual, direction, square, goes_on):
        return goes_on & (tf.sqrt(square) > goal)

    def body(k, x, residual, direction, square, goes_on):
        product = matvec(direction)
        curvature = dot(direction, product)
        positive = curvature > 0
        step = tf.where(
            positive,
            tf.math.divide_no_nan(square, curvature),
            tf.zeros_like(square),
        )
        x = plus_scaled(x, step, direction)
        residual = plus_scaled(residual, -step, product)
        new_square = dot(residual, residual)
        ratio = tf.math.divide_no_nan(new_square, square)
        direction = plus_scaled(residual, ratio, direction)
        return k + 1, x, residual, direction, new_square, positive

    start = list(rhs)
    _, x, residual, *_ = tf.while_loop(
        unfinished,
        body,
        (
            tf.constant(0),
            zeros_like(rhs),
            start,
            start,
            dot(start, start),
            tf.constant(True),
        ),
        parallel_iterations=1,
        maximum_iterations=max_iterations,
    )
    return x, _relative(residual, rhs)


def largest_curvature(
    matvec: Callable, start: list, num_iterations: int = 10
) -> tf.Tensor:
    """Largest eigenvalue by modulus, by the power method.

    Args:
        matvec: Function from a list of tensors to `A` times it, with `A`
            symmetric.
        start: List of tensors, not zero.
        num_iterations: Integer, products with `A` that it takes.

    Returns:
        Scalar tensor `>= 0`, an estimate from below.
    """

    def body(k, vector, size):
        scaled = [
            tf.math.divide_no_nan(tensor, tf.cast(size, tensor.dtype))
            for tensor in vector
        ]
        vector = matvec(scaled)
        return k + 1, vector, norm(vector)

    *_, size = tf.while_loop(
        lambda k, *_: k < num_iterations,
        body,
        (tf.constant(0), list(start), norm(start)),
        parallel_iterations=1,
        maximum_iterations=num_iterations,
    )
    return size


def _relative(residual, rhs):
    return tf.math.divide_no_nan(norm(residual), norm(rhs))
