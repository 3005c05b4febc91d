"""Random numbers of layers are those that Keras draws."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs

LAYERS = {
    "dropout": lambda: keras.layers.Dropout(0.3),
    "gru": lambda: keras.layers.GRU(3, dropout=0.3),
    "lstm": lambda: keras.layers.LSTM(3, recurrent_dropout=0.3),
}


def make_data():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 5, 3)), rng.normal(size=(12, 1))
    return x.astype("float32"), y.astype("float32")


def make_model(name):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((5, 3)),
            LAYERS[name](),
            keras.layers.Flatten(),
            keras.layers.Dense(
                1, kernel_regularizer=hs.regularizers.LearnableL2(0.01)
            ),
        ]
    )


def learn(model, **fits):
    """Chains of one step on the batches that Keras takes."""
    x, y = make_data()
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(0, 1),
        hyper_optimizer=keras.optimizers.SGD(0.0),
    )
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    for _ in range(fits.pop("times", 1)):
        learner.fit(batches, outer_data=(x[:4] + 1, y[:4]), verbose=0, **fits)
    return model


@pytest.mark.parametrize("name", LAYERS)
def test_masks_are_those_of_keras(name):
    plain = make_model(name)
    plain.compile(hs.SGLD(0.05), "mse", jit_compile=False)
    plain.fit(*make_data(), batch_size=4, shuffle=False, verbose=0)
    learned = learn(make_model(name))
    for ours, expected in zip(learned.variables, plain.variables, strict=True):
        np.testing.assert_array_equal(ours, expected)
    # Without dropout the weights would be others.
    states = [v.numpy() for v in plain.variables if "seed" in v.path]
    assert len(states) == 1 and states[0][1] >= 3


def test_two_fits_draw_what_one_fit_draws():
    once = learn(make_model("gru"), epochs=2)
    twice = learn(make_model("gru"), times=2)
    for ours, expected in zip(twice.variables, once.variables, strict=True):
        np.testing.assert_array_equal(ours, expected)
