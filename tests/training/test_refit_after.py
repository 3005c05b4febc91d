"""`fit(refit=True)`: learned first, then trained on everything."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import Batches
from builders import make_data
from builders import values

import keras_hposgld as hs
from keras_hposgld.training import refit

L = keras.layers


def make_learner(classes=0, **arguments):
    """One hidden layer with seeds; compiled with non-default arguments."""

    def dense(units, seed, **others):
        start = keras.initializers.GlorotUniform(seed)
        return L.Dense(units, kernel_initializer=start, **others)

    strength = hs.regularizers.LearnableL2(0.05, max_value=5.0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            dense(5, 1, kernel_regularizer=strength, activation="tanh"),
            dense(classes or 1, 2),
        ]
    )
    learner = hs.BilevelModel(model, seed=3, **arguments)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(
        optimizer=hs.SGLD(0.05, momentum=0.5, seed=4),
        loss=loss if classes else "mse",
        metrics=["accuracy" if classes else "mae"],
        hypergradient=hs.estimators.HPOSGLD(1, 2),
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    return learner


def make_classes(n, seed=0):
    x, y = make_data(n, seed)
    return x, (y[:, 0] > 0).astype("int64") + (y[:, 0] > 1)


X, Y = make_data(48)
X_OUTER, Y_OUTER = make_data(24, seed=1)
FIT = dict(batch_size=8, epochs=2, verbose=0)


def assert_one_call_is_two(data, refit_data, fit=(), refit=(), **model):
    """Checks that one call gives what two calls give; returns its history."""
    at_once, after = make_learner(**model), make_learner(**model)
    arguments = FIT | dict(fit)
    history = at_once.fit(*data, **arguments, refit=True)
    learning = after.fit(*data, **arguments)
    assert history.history == learning.history
    assert_equal(values(at_once), values(after))
    after.refit(*refit_data, **(FIT | dict(refit)))
    assert_equal(at_once.trainable_variables, after.trainable_variables)
    return history


@pytest.fixture(autouse=True)
def same_order(monkeypatch):
    # Of fresh weights and of the shuffling in plain Keras.
    plain = keras.Model.fit

    def seeded(model, *args, **kwargs):
        keras.utils.set_random_seed(1)
        return plain(model, *args, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", seeded)


def test_outer_data_are_trained_on_as_well():
    history = assert_one_call_is_two(
        (X, Y),
        (np.concatenate([X, X_OUTER]), np.concatenate([Y, Y_OUTER])),
        dict(outer_data=(X_OUTER, Y_OUTER), validation_data=(X[:5], Y[:5])),
        dict(validation_data=(X[:5], Y[:5])),
    )
    assert history.refit.epoch == [0, 1]
    assert "val_loss" in history.refit.history
    assert "outer_loss" not in history.refit.history


def test_outer_split_gives_back_the_order_of_the_data():
    assert_one_call_is_two(
        (X, Y),
        (X[:36], Y[:36]),
        dict(outer_split=0.25, validation_split=0.25, shuffle=False),
        dict(validation_data=(X[36:], Y[36:]), shuffle=False),
    )


def test_weights_of_examples_and_of_classes_count_for_all():
    (x, y), (u, v) = make_classes(48), make_classes(24, seed=1)
    own = np.linspace(0.5, 2.0, 24).astype("float32")
    class_weight = {0: 3.0, 2: 0.25}
    table = np.array([3.0, 1.0, 0.25])
    assert_one_call_is_two(
        (x, y),
        (np.concatenate([x, u]), np.concatenate([y, v])),
        dict(outer_data=(u, v, own), class_weight=class_weight),
        dict(sample_weight=np.concatenate([table[y], own * table[v]])),
        classes=3,
    )


@pytest.mark.parametrize("where", ["training", "outer"])
def test_examples_without_weights_count_once(where):
    weights = {
        "training": np.linspace(0.5, 2.0, 48).astype("float32"),
        "outer": np.linspace(0.5, 2.0, 24).astype("float32"),
    }
    ones = {name: np.ones_like(w) for name, w in weights.items()}
    both = ones | {where: weights[where]}
    outer = (X_OUTER, Y_OUTER, weights["outer"])
    assert_one_call_is_two(
        (X, Y),
        (np.concatenate([X, X_OUTER]), np.concatenate([Y, Y_OUTER])),
        dict(outer_data=outer)
        if where == "outer"
        else dict(outer_data=outer[:2], sample_weight=weights["training"]),
        dict(sample_weight=np.concatenate([both["training"], both["outer"]])),
    )


def test_structures_of_inputs_are_joined():
    inputs = {
        "a": keras.Input((6,), name="a"),
        "b": keras.Input((1,), name="b"),
    }
    merged = L.Concatenate()([inputs["a"], inputs["b"]])
    strength = hs.regularizers.LearnableL2(0.05, max_value=5.0)
    model = keras.Model(inputs, L.Dense(1, kernel_regularizer=strength)(merged))
    learner = hs.BilevelModel(model, seed=3)
    learner.compile(hs.SGLD(0.05), "mse", hypergradient=hs.estimators.RMD(2))
    outer = {"a": tf.constant(X_OUTER), "b": Y_OUTER}, Y_OUTER.astype("int64")
    history = learner.fit(
        {"a": tf.constant(X), "b": Y}, Y, outer_data=outer, refit=True, **FIT
    )
    assert history.refit.params["steps"] == 9  # of 72 examples


class Stop(keras.callbacks.Callback):
    """Ends the learning after an epoch, as `EarlyStopping` does."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.models = epoch, set()

    def on_epoch_end(self, epoch, logs=None):
        self.models.add(self.model)
        self.model.stop_training = epoch == self.epoch


@pytest.mark.parametrize(
    ("arguments", "passes"),
    [
        ({"epochs": 5}, 5),
        ({"epochs": 5, "callbacks": 1}, 2),
        ({"epochs": 5, "initial_epoch": 3}, 5),
        # 18 and 12 batches, where a pass over all 72 examples takes 9.
        ({"epochs": 1, "steps_per_epoch": 18}, 2),
        ({"epochs": 4, "steps_per_epoch": 3}, 2),
    ],
)
def test_refit_takes_what_the_learning_took(arguments, passes):
    learner, stop = make_learner(), Stop(arguments.pop("callbacks", None))
    history = learner.fit(
        *(X, Y),
        outer_data=(X_OUTER, Y_OUTER),
        refit=True,
        callbacks=[stop],
        **(FIT | arguments),
    )
    assert len(history.refit.epoch) == passes
    assert stop.models == {learner}  # and so not of the refit
    assert history.epoch[-1] == arguments["epochs"] - 1 or stop.epoch


@pytest.mark.parametrize("moment", ["while it trains", "while it is copied"])
def test_interrupted_refit_leaves_what_was_learned(monkeypatch, moment):
    learner, other = make_learner(), make_learner()
    data = dict(outer_data=(X_OUTER, Y_OUTER))
    learning = other.fit(X, Y, **data, **FIT)

    def copy_one(source, target, trainable=True):
        if not trainable:
            return
        target.trainable_variables[0].assign(source.trainable_variables[0])
        raise KeyboardInterrupt

    plain = keras.Model.fit

    def fit(model, *args, **kwargs):
        history = plain(model, *args, **kwargs)
        if model is not learner and moment == "while it trains":
            raise KeyboardInterrupt
        return history

    monkeypatch.setattr(keras.Model, "fit", fit)
    monkeypatch.setattr(refit, "copy_weights", copy_one)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(X, Y, **data, **FIT, refit=True)
    assert_equal(learner.variables, other.variables)
    assert learner.history.history == learning.history


def dataset(x, y):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(8)


@pytest.mark.parametrize(
    ("data", "arguments", "name"),
    [
        ((dataset(X, Y),), dict(outer_data=(X, Y)), "x of type _BatchDataset"),
        ((X, Y), dict(outer_data=dataset(X, Y)), "outer_data of type _Batch"),
        ((Batches([(X, Y)]),), dict(outer_data=(X, Y)), "x of type Batches"),
        ((iter([(X, Y)]),), dict(outer_data=(X, Y)), "x of type list_iterator"),
        (
            (X, Y, np.ones(48)),
            dict(outer_data=(X_OUTER, Y_OUTER, [np.ones(24)])),
            "ndarray and list",
        ),
    ],
)
def test_what_cannot_be_joined_is_refused_before_training(
    data, arguments, name
):
    learner = make_learner()
    if len(data) == 3:
        arguments["sample_weight"] = data[2]
    before = [v.numpy() for v in learner.variables]
    with pytest.raises(ValueError, match=f"`refit=True`.*{name}"):
        learner.fit(*data[:2], **arguments, refit=True, epochs=1)
    assert_equal(learner.variables, before)


def test_learned_weights_of_examples_are_refused():
    learner = make_learner(example_weights=hs.ExampleWeights(48))
    with pytest.raises(ValueError, match="`refit=True`.*`example_weights`"):
        learner.fit(X, Y, outer_data=(X_OUTER, Y_OUTER), refit=True)
    assert learner.outer_iterations == 0
