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
iteration, which leaves an error in D, and none in rho. Large blocks disturb
small ones, so D is found in rounds, each in units of the one before.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld.core.loop import run_steps
from keras_hposgld.core.vectors import norm
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.position import Position
from keras_hposgld.samplers.noise import fold_in
from keras_hposgld.samplers.noise import unit_noise

# A weight that the loss hardly depends on now may matter soon.
SMALLEST_BLOCK = 1e-4  # over the largest
# By what a block falls in a round at most: what is found may be chance.
LEAST = 0.05


def largest_of_blocks(
    chain: Chain,
    params: list,
    batch: Any,
    blocks: tf.Tensor,
    number: int,
    seed: tf.Tensor,
    in_loop: bool = True,
) -> tf.Tensor:
    """The largest eigenvalue of the block of each weight, by one round.

    Args:
        chain: `Chain`.
        params: List of tensors, where the derivatives are taken.
        batch: A batch of the inner objective.
        blocks: Tensor with one number for each of the params: what was found
            before, or ones.
        number: Integer `>= 2`, power iterations.
        seed: Integer tensor `(2,)`.
        in_loop: Whether they may run in a `tf.while_loop`.

    Returns:
        Tensor like `blocks`, above zero unless all are zero.
    """
    over_roots = _over_roots(blocks, params)

    def iterate(state: tuple, index: Any) -> tuple:
        vector, total = state
        signs = _signs(fold_in(seed, index), params)
        moved = _product(
            chain, params, batch, over_roots(_times(signs, vector))
        )
        moved = over_roots(_times(signs, moved))
        # Not the length of `moved`: what other blocks add to it has a mean of
        # zero here. The later half counts, of which each has its own error.
        along = [
            tf.reduce_sum(m * z) for m, z in zip(moved, vector, strict=True)
        ]
        counts = tf.cast(index >= number // 2, total.dtype)
        total += counts * tf.stack([tf.cast(x, total.dtype) for x in along])
        return [_unit(part, norm([part])) for part in moved], total

    start = [
        _unit(part, norm([part])) for part in random_direction(params, seed)
    ]
    state = (start, tf.zeros_like(blocks))
    _, total = repeat(iterate, state, number, in_loop)
    changes = tf.maximum(tf.abs(total) / (number - number // 2), LEAST)
    # Where the loss depends on no weight at all, there is nothing to find.
    changes = tf.where(tf.reduce_any(total != 0), changes, 0.0)
    blocks *= changes
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
    over_roots = _over_roots(blocks, params)

    def iterate(state: tuple, index: Any) -> tuple:
        vector, _ = state
        moved = _product(chain, params, batch, over_roots(vector))
        moved = over_roots(moved)
        length = norm(moved)
        return [_unit(part, length) for part in moved], length

    length = norm(direction)
    start = [_unit(part, length) for part in direction]
    direction, length = repeat(
        iterate, (start, tf.zeros_like(length)), number, in_loop
    )
    return tf.cast(length, tf.float32), direction


def step_sizes(blocks: tf.Tensor, rho: tf.Tensor) -> tf.Tensor:
    """S, one number for each weight; 1 where the loss depends on none."""
    inverse = tf.math.reciprocal_no_nan(blocks * rho)
    return tf.where(inverse > 0, inverse, tf.ones_like(inverse))


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


def _over_roots(blocks: tf.Tensor, params: list) -> Callable:
    """D^(-1/2) times a vector, as a function."""
    roots = [
        tf.cast(tf.sqrt(block), param.dtype)
        for block, param in zip(tf.unstack(blocks), params, strict=True)
    ]
    return lambda vector: [
        tf.math.divide_no_nan(part, root)
        for part, root in zip(vector, roots, strict=True)
    ]


def repeat(step: Callable, state: Any, number: Any, in_loop: bool) -> Any:
    """The state after some steps, by a `tf.while_loop` or one by one."""
    if in_loop:
        return run_steps(step, state, number)
    for index in range(number):
        state = step(state, tf.constant(index))
    return state


def random_direction(params: list, seed: tf.Tensor) -> list:
    """Where power iterations begin that know nothing."""
    return [
        unit_noise(
            param.shape, param.dtype, "gaussian", fold_in(seed, -1 - position)
        )
        for position, param in enumerate(params)
    ]


def _signs(seed: tf.Tensor, params: list) -> list:
    draws = unit_noise([len(params)], tf.float32, "rademacher", seed)
    signs = tf.unstack(draws)
    return [tf.cast(s, p.dtype) for s, p in zip(signs, params, strict=True)]


def _times(numbers: list, vector: list) -> list:
    return [n * part for n, part in zip(numbers, vector, strict=True)]


def _unit(vector: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(vector, tf.cast(length, vector.dtype))
