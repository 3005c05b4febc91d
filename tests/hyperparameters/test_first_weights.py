"""Which weights see the inputs of a model."""

import keras
import numpy as np
import pytest

from keras_hposgld.hyperparameters.first_weights import first_weights
from keras_hposgld.hyperparameters.first_weights import is_one_linear_layer

L = keras.layers


def names(model):
    return {weight.path.split("/")[-2] for weight in first_weights(model)}


def test_sequential_and_nested_models():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Rescaling(2.0),
            L.Dense(3, name="first"),
            L.Dense(2, name="second"),
        ]
    )
    assert names(model) == {"first"}
    assert len(first_weights(model)) == 2
    outer = keras.Sequential([keras.Input((4,)), model, L.Dense(1)])
    assert names(outer) == {"first"}


def test_a_graph_has_as_many_as_it_has_ways_in():
    a, b = keras.Input((4,)), keras.Input((6,))
    one = L.Dense(3, name="of_a")(L.Flatten()(a))
    two = L.Dense(3, name="of_b")(b)
    both = L.Concatenate()([one, two, a])  # and a way around
    outputs = L.Dense(1, name="last")(L.Activation("relu")(both))
    model = keras.Model([a, b], outputs)
    assert names(model) == {"of_a", "of_b"}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.one, self.two = L.Dense(3, name="one"), L.Dense(1, name="two")

    def call(self, x):
        return self.two(self.one(x))


def test_of_a_subclassed_model_the_first_layer_counts():
    model = Subclassed()
    model(np.ones((1, 4)))
    assert names(model) == {"one"}


@pytest.mark.parametrize(
    "layers, expected",
    [
        ([L.Dense(2)], True),
        ([L.Normalization(mean=0.0, variance=1.0), L.Dense(2)], True),
        ([L.Flatten(), L.Dense(2, "softmax", use_bias=False)], True),
        ([L.Dense(2, "relu")], False),
        ([L.Dense(3), L.Dense(2)], False),
        ([L.LayerNormalization(), L.Dense(2)], False),
        ([L.Dense(2), L.Activation("relu")], False),
    ],
)
def test_linear_models_are_told_apart(layers, expected):
    model = keras.Sequential([keras.Input((4,)), *layers])
    assert is_one_linear_layer(model) is expected
