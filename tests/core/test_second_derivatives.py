"""Second derivatives of Keras's normalization layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.core.derivatives import linearize_gradient
from keras_hposgld.core.max_pooling import max_pool
from keras_hposgld.core.second_derivatives import differentiable_twice
from keras_hposgld.core.second_derivatives import moments

LAYERS = {
    "batch": lambda: keras.layers.BatchNormalization(),
    "layer": lambda: keras.layers.LayerNormalization(),
    "group": lambda: keras.layers.GroupNormalization(2),
}


@pytest.mark.parametrize("kind", list(LAYERS))
def test_hessian_of_a_normalized_model_is_that_of_differences(
    rng, run, kind, float64
):
    layer = LAYERS[kind]()
    layer.build((6, 4))
    factors, x, vector = (tf.constant(a) for a in rng.normal(size=(3, 6, 4)))
    arguments = {"training": True} if kind == "batch" else {}

    def linearized(x):
        def objective(params):
            y = layer(params[0], **arguments)
            return tf.reduce_sum(factors * y**3), None

        return linearize_gradient(objective, [x], [x])

    product = run(lambda: linearized(x).pullback([vector])[0])
    step = 1e-5
    ahead, behind = (
        linearized(x + sign * step * vector).gradient[0] for sign in (1, -1)
    )
    np.testing.assert_allclose(
        product, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("estimator", ["rmd", "fmd"])
def test_hypergradient_of_a_normalized_model_is_that_of_differences(
    rng, run, estimator, float64
):
    inputs, outer_inputs = (tf.constant(a) for a in rng.normal(size=(2, 5, 3)))
    targets, start = rng.normal(size=(5, 4)), rng.normal(size=(3, 4))
    layer = keras.layers.LayerNormalization()
    layer.build((5, 4))

    def fit(weights, x):
        return tf.reduce_mean((layer(x @ weights) - targets) ** 2)

    def inner(strength, weights, batch=None):
        return fit(weights, inputs) + strength * tf.reduce_sum(weights**2)

    def outer(strength, weights, batch=None):
        return fit(weights, outer_inputs)

    problem, sampler = hs.BilevelProblem(inner, outer), hs.SGLD(0.2)
    num_steps = 6

    def at_end(strength):
        weights = tf.constant(start)
        for _ in range(num_steps):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = inner(strength, weights)
            weights -= 0.2 * tape.gradient(loss, weights)
        return float(outer(strength, weights))

    classes = {"rmd": hs.estimators.RMD, "fmd": hs.estimators.FMD}
    result = run(
        lambda: hs.hypergradient(
            problem,
            tf.constant(0.1, tf.float64),
            tf.constant(start),
            estimator=classes[estimator](num_steps=num_steps),
            sampler=sampler,
        )
    )
    step = 1e-5
    expected = (at_end(0.1 + step) - at_end(0.1 - step)) / (2 * step)
    np.testing.assert_allclose(result.hypergradient, expected, rtol=1e-6)


@pytest.mark.parametrize("keepdims", [True, False])
def test_values_are_those_of_tensorflow(rng, keepdims):
    x = tf.constant(rng.normal(size=(3, 4, 5)))
    ours = moments(x, [0, 1], keepdims=keepdims)
    theirs = tf.nn.moments(x, [0, 1], keepdims=keepdims)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_tensorflows_own_is_put_back():
    before = tf.nn.moments, tf.nn.max_pool
    nested = differentiable_twice
    with pytest.raises(ZeroDivisionError), nested(), nested():
        assert (tf.nn.moments, tf.nn.max_pool) == (moments, max_pool)
        raise ZeroDivisionError
    assert (tf.nn.moments, tf.nn.max_pool) == before
    assert moments not in before
    assert max_pool not in before
