"""Clipping: the values of Keras's, with derivatives everywhere."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.core.derivatives import directional_derivative
from keras_hposgld.core.derivatives import vector_jacobian_product

KINDS = [{"clipnorm": 0.7}, {"clipvalue": 0.3}, {"global_clipnorm": 0.7}]


@pytest.fixture(params=KINDS, ids=lambda kind: next(iter(kind)))
def clipping(request):
    return request.param


def gradients_of(rng, size, dtype="float64"):
    return [
        tf.constant(size * rng.normal(size=shape), dtype)
        for shape in ((3,), (2, 2))
    ]


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.05, 3.0])
def test_values_are_those_of_keras(rng, clipping, size):
    gradients = gradients_of(rng, size, "float32")
    plain = keras.optimizers.SGD(0.1, **clipping)._clip_gradients(gradients)
    ours = hs.SGLD(0.1, **clipping).clip(gradients)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)


# Just beyond the limit of the norm, and one number that is not finite.
@pytest.mark.parametrize("first", [0.6, np.inf, np.nan])
def test_each_entry_is_that_of_keras(clipping, first):
    gradients = [tf.constant([first, 0.0]), tf.constant([0.45])]
    plain = keras.optimizers.SGD(0.1, **clipping)._clip_gradients(gradients)
    ours = hs.SGLD(0.1, **clipping).clip(gradients)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sampler", [hs.SGLD, keras.optimizers.Adam])
def test_gradients_that_are_missing_stay_so(sampler, clipping):
    chain_sampler = hs.samplers.get(sampler(0.1, **clipping))
    clipped = chain_sampler.clip([tf.constant([3.0, 4.0]), None])
    assert clipped[1] is None
    assert np.all(clipped[0] < [3.0, 4.0])


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-20, 0.05])
def test_derivative_inside_of_the_limit_is_the_identity(rng, clipping, size):
    # In float32 the squares of 1e-30 are zero, those of 1e-20 nearly.
    clip = hs.SGLD(0.1, **clipping).clip
    gradients = gradients_of(rng, size, "float32")
    vector = gradients_of(rng, 1.0, "float32")
    for product in (vector_jacobian_product, directional_derivative):
        found = product(clip, gradients, vector)
        for a, b in zip(found, vector, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def test_derivative_beyond_the_limit_is_that_of_differences(rng, clipping):
    clip = hs.SGLD(0.1, **clipping).clip
    gradients, vector = gradients_of(rng, 3.0), gradients_of(rng, 1.0)
    found = directional_derivative(clip, gradients, vector)
    step = 1e-6
    ahead, behind = (
        clip(
            [
                g + sign * step * v
                for g, v in zip(gradients, vector, strict=True)
            ]
        )
        for sign in (1, -1)
    )
    for part, a, b in zip(found, ahead, behind, strict=True):
        np.testing.assert_allclose(part, (a - b) / (2 * step), atol=1e-8)
