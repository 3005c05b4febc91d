"""`LearnableGaussianLoss` is minus the log of a density of the targets."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs

EXACT = dict(rtol=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_value_is_minus_the_log_of_the_normal_density(k, rng, float64):
    y, predicted = rng.normal(size=(2, 5, k))
    loss = hs.losses.LearnableGaussianLoss(0.7, max_value=3.0)
    density = np.exp(-(((y - predicted) / 0.7) ** 2) / 2)
    density /= 0.7 * np.sqrt(2 * np.pi)
    expected = -np.log(density).sum(1)
    np.testing.assert_allclose(loss(y, predicted), expected.mean(), **EXACT)
    # An example of weight 2 is two examples.
    weights = np.array([1.0, 2.0, 1.0, 0.0, 1.0])
    np.testing.assert_allclose(
        loss(y, predicted, weights), weights @ expected / 5, **EXACT
    )
    if k == 1:  # targets without the axis of outputs
        np.testing.assert_allclose(
            loss(y[:, 0], predicted), expected.mean(), **EXACT
        )


def test_best_noise_is_the_spread_of_the_errors(rng, float64):
    error = rng.normal(size=(20, 1))
    spread = np.sqrt(np.mean(error**2))
    loss = hs.losses.LearnableGaussianLoss(spread)
    (variable,) = loss.hyperparameter_variables
    with tf.GradientTape() as tape:
        tape.watch(variable.value)
        value = loss(error, np.zeros_like(error))
    assert abs(tape.gradient(value, variable.value)) < 1e-14
    assert float(loss.log_normalizer(0.1)) == 0.0


def test_noise_whose_square_is_zero_in_its_dtype_costs_a_finite_number():
    loss = hs.losses.LearnableGaussianLoss()
    loss.variable.assign(-60.0)  # sigma is 8.8e-26
    np.testing.assert_allclose(
        loss([[0.0]], [[0.0]]),
        np.log(10.0) - 60 + np.log(2 * np.pi) / 2,
        rtol=1e-6,
    )


def test_learned_noise_is_in_its_config():
    loss = hs.losses.LearnableGaussianLoss(0.5, max_value=4.0)
    loss.variable.assign(0.25)
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert copy.get_config() == loss.get_config()
    (value,) = copy.hyperparameter_values().values()
    np.testing.assert_allclose(value, 4 / (1 + np.exp(-0.25)), rtol=1e-6)


def test_refuses_targets_of_another_shape_and_numbers_out_of_range():
    with pytest.raises(ValueError, match=r"shape \(2,\) and predictions"):
        hs.losses.LearnableGaussianLoss()(np.ones(2), np.ones((2, 3)))
    with pytest.raises(ValueError, match="`initial_value` must lie between"):
        hs.losses.LearnableGaussianLoss(2.0, max_value=2.0)
