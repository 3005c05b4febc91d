"""Structures of inputs and targets, on both levels and in the callback."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import Batches

import keras_hposgld as hs
from keras_hposgld.data.arrays import ArrayData
from keras_hposgld.data.elements import as_batch
from keras_hposgld.data.elements import as_tuples
from keras_hposgld.data.elements import wanted_shapes

Pair = collections.namedtuple("Pair", ["first", "second"])
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 24, 3)).astype("float32")
C, D = A[:, :1] - B[:, 1:2], B[:, :2]
WEIGHT = np.linspace(0.0, 2.0, 24)

# How inputs, targets and sample weights are put together, and the losses.
STRUCTURES = {
    "tuples": (lambda a, b: (a, b), ["mse", "mae"]),
    "lists": (lambda a, b: [a, b], ["mse", "mae"]),
    "dictionaries": (
        lambda a, b: {"b": b, "a": a},
        {"a": "mse", "b": "mae"},
    ),
    "named tuples": (Pair, ["mse", "mae"]),
    "nested": (lambda a, b: {"a": (a,), "b": {"c": b}}, None),
}


def rows(structure, part):
    return keras.tree.map_structure(
        lambda x: None if x is None else x[part], structure
    )


def in_batches(data):
    return [rows(data, slice(n, n + 4)) for n in range(0, 24, 4)]


def as_dataset(data):
    tensors = tf.nest.map_structure(tf.constant, as_tuples(data))
    return tf.data.Dataset.from_tensor_slices(tensors).batch(4)


KINDS = {
    "arrays": lambda data: data,
    "dataset": as_dataset,
    "generator": lambda data: iter(in_batches(data) * 2),
    "PyDataset": lambda data: Batches(in_batches(data)),
}


def dense(units, name):
    return keras.layers.Dense(
        units,
        kernel_regularizer=hs.regularizers.LearnableL2(0.05, max_value=5.0),
        name=name,
    )


class Nested(keras.Model):
    """Takes and gives what no compiled losses could name."""

    def __init__(self):
        super().__init__()
        self.one, self.two = dense(1, "one"), dense(2, "two")

    def call(self, inputs):
        x = keras.ops.concatenate([inputs["a"][0], inputs["b"]["c"]], axis=-1)
        return {"a": (self.one(x),), "b": {"c": self.two(x)}}


def make_model(structure):
    keras.utils.set_random_seed(0)
    if structure == "nested":
        return Nested()
    make, _ = STRUCTURES[structure]
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    x = keras.layers.Concatenate()([a, b])
    outputs = (dense(1, "a_out")(x), dense(2, "b_out")(x))
    if structure == "named tuples":  # which a model's outputs cannot be
        return keras.Model(make(a, b), outputs)
    return keras.Model(make(a, b), make(*outputs))


def compile_arguments(structure):
    loss = STRUCTURES[structure][1]
    if loss is None:
        loss = {"a": ("mse",), "b": {"c": "mae"}}
    return dict(loss=loss)


def assert_alike(weights, expected):
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def plain_weights(structure, data):
    model = make_model(structure)
    model.compile(keras.optimizers.SGD(0.1), **compile_arguments(structure))
    for batch in in_batches(data):
        model.train_on_batch(*as_tuples(batch))
    return [weight.numpy() for weight in model.trainable_variables]


@pytest.mark.parametrize(
    "structure, kind",
    [
        ("tuples", "generator"),
        ("lists", "arrays"),
        ("dictionaries", "generator"),
        ("dictionaries", "PyDataset"),
        ("named tuples", "arrays"),
        ("named tuples", "dataset"),
        ("nested", "dataset"),
    ],
)
def test_weights_are_those_of_keras(structure, kind):
    make, _ = STRUCTURES[structure]
    data = (make(A, B), make(C, D), make(WEIGHT, WEIGHT[::-1]))
    expected = plain_weights(structure, data)
    learner = hs.BilevelModel(make_model(structure))
    learner.compile(
        optimizer=hs.SGLD(0.1),
        hypergradient=hs.estimators.HPOSGLD(1, 2),
        hyper_optimizer=keras.optimizers.SGD(0.0),
        **compile_arguments(structure),
    )
    x = KINDS[kind](data)
    arguments = dict(x=x)
    if kind == "arrays":
        arguments = dict(x=x[0], y=x[1], sample_weight=x[2], batch_size=4)
    history = learner.fit(
        **arguments,
        outer_data=KINDS[kind](data[:2]),
        steps_per_epoch=2 * 3,
        shuffle=False,
        verbose=0,
    )
    assert_alike(
        [weight.numpy() for weight in learner.model.trainable_variables],
        expected,
    )
    assert history.history["outer_loss"][0] > 0.0


@pytest.mark.parametrize(
    "structure, with_inner_data",
    [
        ("lists", False),
        ("dictionaries", False),
        ("named tuples", False),
        ("nested", False),
        ("nested", True),
    ],
)
def test_callback_gets_what_fit_gets(structure, with_inner_data):
    # The outer loss of a chain on its own examples, at weights that stay.
    make, _ = STRUCTURES[structure]
    data = (make(A[:8], B[:8]), make(C[:8], D[:8]))
    model = make_model(structure)
    model.compile(keras.optimizers.SGD(0.0), **compile_arguments(structure))
    x, y = as_tuples(data)
    model.train_on_batch(x, y)
    penalty = float(sum(model.losses))
    expected = model.test_on_batch(x, y, return_dict=True)["loss"] - penalty
    callback = hs.callbacks.LearnHyperparameters(
        data,
        hs.estimators.HPOSGLD(0, 2),
        hs.SGLD(1e-12),
        every=2,
        batch_size=4,
        inner_data=data if with_inner_data else None,
    )
    history = model.fit(
        tf.data.Dataset.from_tensor_slices((x, y)).batch(4),
        callbacks=[callback],
        verbose=0,
    )
    np.testing.assert_allclose(
        history.history["outer_loss"], [expected], rtol=1e-5
    )


class Reconstruction(keras.layers.Layer):
    """Adds the squared distance of its two inputs to the losses."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean((inputs[0] - inputs[1]) ** 2))
        return inputs[0]


def autoencoder():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    code = dense(2, "code")(inputs)
    return keras.Model(
        inputs, Reconstruction()([dense(3, "out")(code), inputs])
    )


X_ONLY = {
    "arrays": lambda: A,
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(A).batch(4),
    "dataset of tuples": lambda: tf.data.Dataset.from_tensor_slices((A,)).batch(
        4
    ),
    "generator": lambda: iter([A[n : n + 4] for n in range(0, 24, 4)]),
    "PyDataset": lambda: Batches([A[n : n + 4] for n in range(0, 24, 4)]),
}


@pytest.mark.parametrize("kind", ["arrays", "dataset", "generator"])
def test_inputs_alone_train_a_model_that_adds_its_loss(kind):
    expected = autoencoder()
    expected.compile(keras.optimizers.SGD(0.1))
    for n in range(0, 24, 4):
        expected.train_on_batch(A[n : n + 4])
    learner = hs.BilevelModel(autoencoder())
    learner.compile(
        optimizer=hs.SGLD(0.1),
        hypergradient=hs.estimators.HPOSGLD(0, 3),
        hyper_optimizer=keras.optimizers.SGD(0.0),
        outer_loss="mse",
    )
    learner.fit(
        X_ONLY[kind](),
        outer_data=(A, A),
        batch_size=4 if kind == "arrays" else None,
        outer_batch_size=4,
        steps_per_epoch=2 * 3,
        shuffle=False,
        verbose=0,
    )
    assert_alike(learner.model.get_weights(), expected.get_weights())


@pytest.mark.parametrize("kind", X_ONLY)
def test_inputs_alone_are_refused_where_there_is_a_loss(kind):
    learner = hs.BilevelModel(autoencoder())
    learner.compile(optimizer=hs.SGLD(0.1), outer_loss="mse")
    with pytest.raises(ValueError, match="`outer_data` must"):
        learner.fit(A, outer_data=X_ONLY[kind](), steps_per_epoch=1)
    learner.compile(optimizer=hs.SGLD(0.1), loss="mse")  # and now `x` does
    with pytest.raises(ValueError, match="must consist of|must be .x, y"):
        learner.fit(X_ONLY[kind](), outer_data=(A, A), steps_per_epoch=1)


def test_callback_takes_inputs_alone():
    model = autoencoder()
    model.compile("sgd")
    callback = hs.callbacks.LearnHyperparameters(
        (A, A),
        hs.estimators.HPOSGLD(0, 2),
        every=2,
        batch_size=4,
        outer_loss="mse",
    )
    history = model.fit(A, batch_size=4, callbacks=[callback], verbose=0)
    assert np.isfinite(history.history["outer_loss"]).all()


def test_targets_may_be_left_out_one_by_one():
    # A weight for one of two outputs; no targets for the other.
    level = ArrayData("x", ([A, B], [C, None], {"a": WEIGHT, "b": None}), 4)
    (a, b), (c, missing), weights = next(iter(level.chains(2)))
    assert missing is None and weights["b"] is None
    assert a.shape == b.shape == (2, 4, 3) and weights["a"].shape == (2, 4)
    np.testing.assert_array_equal(c, a[..., :1] - b[..., 1:2])


def test_elements_lose_what_is_none_at_their_end():
    assert as_batch("x", (1, 2, None)) == (1, 2)
    assert as_batch("x", (1, None, None), needs_targets=False) == (1,)
    assert as_batch("x", {"a": 1}, needs_targets=False) == ({"a": 1},)
    assert as_batch("x", (1, None, 3), needs_targets=False) == (1, None, 3)
    for element in [(1,), {"a": 1}, (1, None), (1, 2, 3, 4)]:
        with pytest.raises(ValueError, match="`x` must be .x, y"):
            as_batch("x", element)


def test_shapes_of_inputs_are_found_by_name_or_place():
    a, b = keras.Input((3,), name="a"), keras.Input((1,), name="b")
    shapes = [(None, 3), (None, 1)]
    assert wanted_shapes((A, C), [a, b]) == shapes
    assert wanted_shapes({"b": C, "a": A}, [b, a]) == shapes
    assert wanted_shapes({"b": C, "a": A}, {"b": b, "a": a}) == shapes
    assert wanted_shapes({"a": A}, {"b": b, "a": a}) == shapes[:1]
    assert wanted_shapes({"other": A, "a": A}, {"b": b, "a": a}) is None
    assert wanted_shapes(A, [a, b]) is None
    assert wanted_shapes(A, None) is None
