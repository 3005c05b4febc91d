"""A search by KerasTuner, which copies the callback for each trial."""

import keras
import numpy as np
import pytest
from builders import make_data

import keras_hposgld as hs

keras_tuner = pytest.importorskip("keras_tuner", reason="it makes the trials")


class Network(keras_tuner.HyperModel):
    """A network of a width to be found; keeps what each trial has learned."""

    def __init__(self):
        super().__init__()
        self.learned = {}

    def build(self, hp):
        keras.utils.set_random_seed(4)
        hidden = keras.layers.Dense(hp.Choice("width", [4, 8]), "relu")
        model = keras.Sequential(
            [keras.Input((6,)), hidden, keras.layers.Dense(1)]
        )
        model.compile("adam", "mse", jit_compile=False)
        return model

    def fit(self, hp, model, *data, **arguments):
        history = model.fit(*data, **arguments)
        (owner,) = hs.find_hyperparameters(model)
        (values, *_) = owner.hyperparameter_values().values()
        self.learned[hp.get("width")] = values
        return history


def make_callback():
    return hs.callbacks.LearnHyperparameters(
        make_data(64, seed=1),
        regularizer=hs.regularizers.LearnableWeightDecay(granularity="input"),
        every=5,
        batch_size=8,
        seed=7,
    )


def test_trials_of_a_search_share_nothing(tmp_path):
    # What a trial learns depends on no other: it is what the same model learns
    # alone, with a callback that was never copied.
    fit = dict(batch_size=8, epochs=4, verbose=0)
    fit["validation_data"] = make_data(32, seed=2)
    original, network = make_callback(), Network()
    tuner = keras_tuner.RandomSearch(
        network, "val_loss", max_trials=2, seed=1, directory=tmp_path
    )
    tuner.search(*make_data(), callbacks=[original], **fit)
    assert network.learned.keys() == {4, 8}
    assert int(original.outer_level.iterations) == 0
    for width, values in network.learned.items():
        alone, hp = Network(), keras_tuner.HyperParameters()
        hp.Fixed("width", width)
        model = alone.build(hp)
        alone.fit(hp, model, *make_data(), callbacks=[make_callback()], **fit)
        np.testing.assert_array_equal(values, alone.learned[width])
        assert np.all(values != np.float32(0.1))  # all have moved
