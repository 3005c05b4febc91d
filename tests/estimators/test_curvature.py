"""Step sizes of weights, from the second derivatives of the loss."""

import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.estimators import curvature
from keras_hposgld.estimators.chain import Chain

SIZES = (5, 3, 1)
SEED = tf.constant([3, 1])


def hessian(rng):
    """A positive definite one, whose blocks differ by orders of magnitude."""
    scales = np.repeat([10.0, 1.0, 0.3], SIZES)
    roots = rng.normal(size=(sum(SIZES), 20)) * scales[:, None]
    return roots @ roots.T / 20


def blocks_of(matrix):
    ends = np.cumsum(SIZES)
    parts = zip(ends - SIZES, ends, strict=True)
    return [np.linalg.eigvalsh(matrix[a:b, a:b])[-1] for a, b in parts]


def chain_of(matrix, strength=0.0):
    """A quadratic loss with a cubic part, and a penalty of one weight."""

    def inner(hypers, params, batch):
        w = tf.concat([tf.reshape(part, [-1]) for part in params], 0)
        penalty = hypers[0] * tf.reduce_sum(params[1] ** 2)
        quadratic = 0.5 * tf.tensordot(w, tf.linalg.matvec(matrix, w), 1)
        return batch * quadratic + penalty

    problem = hs.BilevelProblem(
        inner, curvature=lambda hypers: [None, 2 * hypers[0], None]
    )
    return Chain(
        problem, [tf.constant(strength, tf.float64)], hs.SGLD(), 0, SEED
    )


@pytest.mark.parametrize("strength", [0.0, 1e4])
def test_largest_eigenvalues_are_those_of_the_loss(run, rng, strength):
    matrix = hessian(rng)
    params = [tf.ones([size], tf.float64) for size in SIZES]
    batch = tf.constant(2.0, tf.float64)
    chain = chain_of(matrix, strength)

    def both():
        blocks = tf.ones([3])
        for number in range(4):
            blocks = curvature.largest_of_blocks(
                chain, params, batch, blocks, 100, SEED + number
            )
        rho, direction = curvature.largest_eigenvalue(
            *(chain, params, batch, blocks),
            curvature.random_direction(params, SEED),
            200,
        )
        return blocks, rho, direction

    blocks, rho, direction = run(both)
    exact = 2 * np.array(blocks_of(matrix))
    # Signs at random leave an error.
    assert np.all(np.abs(np.log(blocks / exact)) < np.log(1.5))
    roots = np.repeat(np.sqrt(blocks), SIZES)
    scaled = 2 * matrix / np.outer(roots, roots)
    np.testing.assert_allclose(rho, np.linalg.eigvalsh(scaled)[-1], rtol=1e-5)
    along = np.concatenate(direction)
    np.testing.assert_allclose(
        scaled @ along, rho * along, atol=2e-4 * float(rho)
    )
    # The largest step that follows H: its fastest mode moves by all of itself.
    sizes = curvature.step_sizes(blocks, rho)
    root = np.sqrt(np.repeat(sizes, SIZES))
    stiffness = np.linalg.eigvalsh(2 * matrix * np.outer(root, root))[-1]
    np.testing.assert_allclose(stiffness, 1.0, rtol=1e-4)


def test_a_loop_and_its_steps_written_out_agree(rng):
    matrix = hessian(rng)
    params = [tf.ones([size], tf.float64) for size in SIZES]
    batch = tf.constant(1.0, tf.float64)
    chain, start = chain_of(matrix), curvature.random_direction(params, SEED)
    results = []
    for in_loop in (True, False):
        blocks = curvature.largest_of_blocks(
            chain, params, batch, tf.ones([3]), 6, SEED, in_loop
        )
        rho, _ = curvature.largest_eigenvalue(
            chain, params, batch, blocks, start, 3, in_loop
        )
        results.append([*blocks.numpy(), float(rho)])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


def test_a_weight_of_no_effect_takes_a_bounded_step():
    blocks = np.array([4.0, 0.0, 1.0])
    params = [tf.ones([size], tf.float64) for size in SIZES]
    matrix = np.diag(np.repeat(blocks, SIZES))
    found = curvature.largest_of_blocks(
        *(chain_of(matrix), params, tf.constant(1.0, tf.float64)),
        *(tf.constant([8.0, 8.0, 8.0]), 8, SEED),
    )
    np.testing.assert_allclose(found, [4.0, 0.4, 1.0], rtol=1e-6)
    for _ in range(4):
        found = curvature.largest_of_blocks(
            *(chain_of(matrix), params, tf.constant(1.0, tf.float64)),
            *(found, 8, SEED),
        )
    np.testing.assert_allclose(found, [4.0, 4e-4, 1.0], rtol=1e-6)
    nothing = curvature.step_sizes(tf.zeros([2]), tf.zeros([]))
    np.testing.assert_array_equal(nothing, [1.0, 1.0])
