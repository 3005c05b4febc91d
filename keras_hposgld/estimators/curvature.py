"""Step sizes of single weights, from the second derivatives of the loss.

Let H be the second derivatives of the inner objective without its quadratic
penalties. An explicit step of the size S, one number for each weight (a kernel,
a bias), follows it where the largest eigenvalue rho of S^(1/2) H S^(1/2) is
below 2. With D_l the largest eigenvalue of the block of H that belongs to the
weight l alone, the step sizes are

    S_l = 1 / (D_l rho),

rho that of 1 / D in place of S. Weights whose inputs or outputs are large get
small steps, and the whole of them takes the largest step that is safe.

All blocks are found at once: with signs s_l drawn at random, s H s times a
vector is in the mean the blocks times it. Signs are drawn anew in each power
iteration, which leaves an error in D, and none in rho.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld.core.loop import run_steps
from keras_hposgld.core.vectors import norm
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.position import Position

# A weight that the loss hardly depends on now may matter soon.
SMALLEST_BLOCK = 1e-3  # over the largest


def largest_of_blocks(
    chain: Chain,
    params: list,
    batch: Any,
    number: int,
    seed: tf.Tensor,
    in_loop: bool = True,
) -> tf.Tensor:
    """The largest eigenvalue of the block of each weight.

    Args:
        chain: `Chain`.
        params: List of tensors, where the derivatives are taken.
        batch: A batch of the inner objective.
        number: Integer `>= 2`, power iterations.
        seed: Integer tensor `(2,)`.
        in_loop: Whether they may run in a `tf.while_loop`.

    Returns:
        Tensor with one number for each of the params, above zero unless all
        are zero.
    """

    def iterate(state: tuple, index: Any) -> tuple:
        vector, total = state
        own = tf.random.experimental.stateless_fold_in(seed, index)
        signs = _signs(own, len(params))
        signed = [
            tf.cast(s, z.dtype) * z for s, z in zip(signs, vector, strict=True)
        ]
        moved = _product(chain, params, batch, signed)
        moved = [
            tf.cast(s, z.dtype) * z for s, z in zip(signs, moved, strict=True)
        ]
        lengths = [norm([part]) for part in moved]
        # Each of the later half has an error of its own: their mean counts.
        counts = tf.cast(index >= number // 2, total.dtype)
        total += counts * _stack(lengths)
        return [_unit(m, n) for m, n in zip(moved, lengths, strict=True)], total

    start = _draws(params, seed)
    state = (start, tf.zeros([len(params)], tf.float32))
    _, total = _repeat(iterate, state, number, in_loop)
    blocks = total / (number - number // 2)
    return tf.maximum(blocks, SMALLEST_BLOCK * tf.reduce_max(blocks))


def largest_eigenvalue(
    chain: Chain,
    params: list,
    batch: Any,
    blocks: tf.Tensor,
    direction: list,
    number: Any,
    in_loop: bool = True,
) -> tuple[tf.Tensor, list]:
    """The largest eigenvalue of D^(-1/2) H D^(-1/2), by power iterations.

    Args:
        chain: `Chain`.
        params: List of tensors.
        batch: A batch of the inner objective.
        blocks: What `largest_of_blocks` returned, D.
        direction: List of tensors like the params, not zero: where to begin.
        number: Integer, power iterations.
        in_loop: As there.

    Returns:
        rho, a scalar tensor in float32; the last direction.
    """
    roots = [
        tf.cast(tf.sqrt(block), param.dtype)
        for block, param in zip(tf.unstack(blocks), params, strict=True)
    ]

    def over_roots(vector: list) -> list:
        return [
            tf.math.divide_no_nan(part, root)
            for part, root in zip(vector, roots, strict=True)
        ]

    def iterate(state: tuple, index: Any) -> tuple:
        vector, _ = state
        moved = _product(chain, params, batch, over_roots(vector))
        moved = over_roots(moved)
        length = norm(moved)
        return [_unit(part, length) for part in moved], length

    length = norm(direction)
    start = [_unit(part, length) for part in direction]
    direction, length = _repeat(
        iterate, (start, tf.zeros_like(length)), number, in_loop
    )
    return tf.cast(length, tf.float32), direction


def step_sizes(blocks: tf.Tensor, rho: tf.Tensor) -> tf.Tensor:
    """S, one number for each weight; 1 where the loss depends on none."""
    inverse = tf.math.reciprocal_no_nan(blocks * rho)
    return tf.where(inverse > 0, inverse, tf.ones_like(inverse))


def random_direction(params: list, seed: tf.Tensor) -> list:
    """Where power iterations begin that know nothing."""
    return _draws(params, seed)


def _product(chain: Chain, params: list, batch: Any, vector: list) -> list:
    """H times a vector, the mean over the replicas."""
    # Of their own: one of the params may be a hyperparameter's tensor.
    params = [tf.identity(param) for param in params]
    position = Position(params, chain.problem.initial_carry, {})
    inner = chain.linearize(position, batch, params)
    product = with_zeros(chain.mean(inner.pullback(vector)), params)
    curvature = chain.problem.curvature_of(chain.hyperparameters)
    return [
        p if h is None else p - tf.cast(h, p.dtype) * z
        for p, h, z in zip(
            product, curvature or [None] * len(params), vector, strict=True
        )
    ]


def _repeat(step: Callable, state: Any, number: Any, in_loop: bool) -> Any:
    if in_loop:
        return run_steps(step, state, number)
    for index in range(number):
        state = step(state, tf.constant(index))
    return state


def _draws(params: list, seed: tf.Tensor) -> list:
    return [
        tf.random.stateless_normal(
            param.shape,
            tf.random.experimental.stateless_fold_in(seed, -1 - position),
            dtype=param.dtype,
        )
        for position, param in enumerate(params)
    ]


def _signs(seed: tf.Tensor, number: int) -> list:
    bits = tf.random.stateless_uniform(
        [number], seed, minval=0, maxval=2, dtype=tf.int32
    )
    return tf.unstack(tf.cast(2 * bits - 1, tf.float32))


def _unit(vector: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(vector, tf.cast(length, vector.dtype))


def _stack(numbers: list) -> tf.Tensor:
    return tf.stack([tf.cast(number, tf.float32) for number in numbers])
