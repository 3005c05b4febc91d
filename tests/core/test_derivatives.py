"""Tapes against closed forms."""

import numpy as np
import problems
import tensorflow as tf

from keras_hposgld.core import derivatives


def test_pullback_is_vector_times_second_derivative(rng, run):
    ridge = problems.Ridge(rng)
    vector = rng.normal(size=4)

    def products(strengths, weights):
        linearized = derivatives.linearize_gradient(
            lambda params: (ridge.inner(strengths, params[0], None), ()),
            [weights],
            [strengths, weights],
        )
        return linearized.gradient[0], *linearized.pullback([vector])

    gradient, mixed, hessian = run(
        products, tf.constant(ridge.strengths), tf.constant(ridge.start)
    )
    np.testing.assert_allclose(
        gradient,
        ridge.inner_gradient(ridge.strengths, ridge.start),
        rtol=1e-12,
    )
    np.testing.assert_allclose(
        mixed, vector @ ridge.inner_mixed(ridge.start), rtol=1e-12
    )
    np.testing.assert_allclose(
        hessian, vector @ ridge.inner_hessian(ridge.strengths), rtol=1e-12
    )


def test_pullback_goes_through_the_transform():
    # gradient = 2 * strength * weight, clipped to norm 1: its derivative by
    # the strength is zero, since only the direction is left.
    weights, strength = tf.constant([3.0, 4.0]), tf.constant(2.0)
    linearized = derivatives.linearize_gradient(
        lambda params: (strength * tf.reduce_sum(params[0] ** 2), ()),
        [weights],
        [strength],
        lambda gradients: [tf.clip_by_norm(gradients[0], 1.0)],
    )
    np.testing.assert_allclose(linearized.gradient[0], [0.6, 0.8], rtol=1e-6)
    (product,) = linearized.pullback([tf.constant([1.0, 1.0])])
    np.testing.assert_allclose(product, 0.0, atol=1e-6)


def test_difference_is_the_directional_derivative(rng, run):
    a, b = rng.normal(size=(3, 2)), rng.normal(size=4)
    inputs = [tf.constant(a), tf.constant(b)]

    def cubes_and_crossed(x):
        return [x[0] ** 3, x[1] * tf.reduce_sum(x[0])]

    def difference(*direction):
        return derivatives.difference_along(
            cubes_and_crossed, inputs, cubes_and_crossed(inputs), direction
        )

    # A long direction: the distance between the points must not follow it.
    da, db = 1e6 * rng.normal(size=(3, 2)), 1e6 * rng.normal(size=4)
    first, second = run(difference, tf.constant(da), tf.constant(db))
    np.testing.assert_allclose(first, 3 * a**2 * da, rtol=1e-3)
    np.testing.assert_allclose(
        second, db * a.sum() + b * da.sum(), rtol=1e-4, atol=1.0
    )
    for part in run(difference, *map(tf.zeros_like, inputs)):
        np.testing.assert_array_equal(part, 0.0)


def test_sparse_gradients_become_dense(run):
    def gradients(table):
        linearized = derivatives.linearize_gradient(
            lambda params: (tf.reduce_sum(tf.gather(params[0], [0, 2, 2])), ()),
            [table],
            [],
        )
        _, _, (by_params,) = derivatives.value_and_gradients(
            lambda params: tf.reduce_sum(tf.gather(params[0], [1])), [], [table]
        )
        return linearized.gradient[0], by_params

    first, second = run(gradients, tf.ones([3, 2]))
    np.testing.assert_array_equal(first, [[1, 1], [0, 0], [2, 2]])
    np.testing.assert_array_equal(second, [[0, 0], [1, 1], [0, 0]])


def test_missing_dependence_is_none_or_zero():
    value, direct, by_params = derivatives.value_and_gradients(
        lambda params: params[0] ** 2,
        [tf.constant(1.0)],
        [tf.constant(3.0), tf.constant([1.0, 2.0])],
    )
    assert float(value) == 9.0
    assert direct == [None]
    assert float(by_params[0]) == 6.0
    np.testing.assert_array_equal(by_params[1], [0.0, 0.0])


def test_vector_jacobian_product(rng, run):
    matrix, vector = rng.normal(size=(3, 2)), rng.normal(size=3)
    product, unused = run(
        lambda: derivatives.vector_jacobian_product(
            lambda inputs: [tf.linalg.matvec(matrix, inputs[0] ** 2)],
            [tf.constant([2.0, 3.0], tf.float64), tf.constant(1.0)],
            [vector],
        )
    )
    np.testing.assert_allclose(product, vector @ matrix * [4.0, 6.0])
    assert unused is None


def test_loss_scale_changes_no_derivative(rng):
    strength = tf.constant(rng.normal(size=3))
    weight, vector = tf.constant(rng.normal(size=(2, 3)))

    def objective(params):
        (w,) = params
        return tf.reduce_sum(strength * w**2 + w**4), None

    plain, scaled = (
        derivatives.linearize_gradient(
            objective, [weight], [strength, weight], loss_scale=scale
        )
        for scale in (1.0, 1000.0)
    )
    np.testing.assert_allclose(plain.gradient, scaled.gradient, rtol=1e-14)
    for a, b in zip(
        plain.pullback([vector]), scaled.pullback([vector]), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-14)
    for a, b in zip(
        *(
            tf.nest.flatten(
                derivatives.value_and_gradients(
                    lambda params: objective(params)[0],
                    [strength],
                    [weight],
                    scale,
                )
            )
            for scale in (1.0, 1000.0)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-14)
