"""The rate at which the callback learns by default, over a `fit`."""

import math

import keras
import numpy as np
import pytest
from builders import make_data

import keras_hposgld as hs
from keras_hposgld.callbacks.rate_of_learning import RATE
from keras_hposgld.callbacks.rate_of_learning import RateOfLearning


def make_model():
    keras.utils.set_random_seed(2)
    strength = hs.regularizers.LearnableWeightDecay()
    layer = keras.layers.Dense(1, kernel_regularizer=strength)
    model = keras.Sequential([keras.Input((6,)), layer])
    model.compile(keras.optimizers.Adam(0.01), loss="mse")
    return model


class Rates(keras.callbacks.Callback):
    """Writes down the rate in each batch, of the callback before it."""

    def __init__(self, learning):
        super().__init__()
        self.learning = learning
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.learning.outer_level.hyper_optimizer
        self.seen.append(float(optimizer.learning_rate))


def half_cosine(done):
    return RATE * (1 + math.cos(math.pi * done)) / 2


def rates_of(model, learning, data, **arguments):
    rates = Rates(learning)
    model.fit(*data, callbacks=[learning, rates], verbose=0, **arguments)
    return rates.seen


@pytest.mark.parametrize("steps_per_epoch", [None, 4])
def test_rate_goes_to_zero_with_each_fit(steps_per_epoch):
    learning = hs.callbacks.LearnHyperparameters(make_data(40, seed=1))
    model = make_model()
    for epochs in (5, 10):
        seen = rates_of(
            model,
            learning,
            make_data(),
            batch_size=24,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
        )
        steps = 4 * epochs
        expected = [half_cosine(step / steps) for step in range(steps)]
        np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_run_that_goes_on_has_the_rate_of_its_epoch():
    learning = hs.callbacks.LearnHyperparameters(make_data(40, seed=1))
    seen = rates_of(
        make_model(),
        learning,
        make_data(),
        batch_size=16,
        epochs=5,
        initial_epoch=3,
    )
    assert seen[0] == pytest.approx(half_cosine(3 / 5))
    assert len(seen) == 12


def test_data_of_unknown_length_have_the_rate_of_their_epoch():
    optimizer = keras.optimizers.Adam(0.3)
    rate = RateOfLearning(optimizer)
    rate.begin()
    for batch in (0, 7, 90):
        rate.set_for(1, batch, 2, None)
        assert float(optimizer.learning_rate) == pytest.approx(RATE / 2)
    rate.set_for(1, 5, 2, 10)
    assert float(optimizer.learning_rate) == pytest.approx(half_cosine(0.75))


def test_optimizer_of_the_users_own_keeps_its_rate():
    optimizer = keras.optimizers.Adam(0.03)
    learning = hs.callbacks.LearnHyperparameters(
        make_data(40, seed=1), hyper_optimizer=optimizer
    )
    seen = rates_of(make_model(), learning, make_data(), epochs=4)
    np.testing.assert_allclose(seen, 0.03)
