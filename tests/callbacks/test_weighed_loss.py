"""Learned weights of examples in the plain `fit` of a model."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import make_data

import keras_hposgld as hs

N, STEPS = 24, 4
X, Y = make_data(N)
INDICES = np.arange(N)
OUTER = make_data(8, seed=1)


def make_table(kind=hs.ExampleWeights, number=N):
    weights = kind(number)
    weights.table.assign(np.random.default_rng(3).normal(size=number))
    return weights


def make_model(optimizer=None, make=keras.Sequential):
    keras.utils.set_random_seed(4)
    layers = [keras.Input((6,)), keras.layers.Dense(4, "tanh")]
    model = make([*layers, keras.layers.Dense(1)])
    defaults = dict(loss="mse", metrics=["mae"], weighted_metrics=["mse"])
    model.compile(optimizer or keras.optimizers.SGD(0.1), **defaults)
    return model


def make_callback(weights, **arguments):
    defaults = dict(
        outer_data=OUTER,
        estimator=hs.estimators.HPOSGLD(0, STEPS),
        hyper_optimizer=keras.optimizers.Adam(0.1),
        batch_size=8,
        seed=7,
    )
    return hs.callbacks.LearnHyperparameters(
        example_weights=weights, **(defaults | arguments)
    )


def fit(model, *callbacks, data=(X, Y), **arguments):
    defaults = dict(epochs=4, verbose=0, shuffle=False)
    if isinstance(data[0], np.ndarray):
        defaults |= dict(batch_size=8)
    return model.fit(*data, callbacks=list(callbacks), **defaults | arguments)


def test_learned_weights_are_those_of_a_bilevel_model():
    # Whose hypergradient is held to a closed form. All examples in a batch,
    # so that both see the same ones; the outer data are one batch as well.
    for make in (make_table, lambda: make_table(hs.SourceWeights, 3)):
        mine, theirs = make(), make()
        keys = INDICES % len(mine.numpy())
        model = make_model()
        before = mine.table.numpy()
        fit(
            model,
            make_callback(mine),
            batch_size=N,
            sample_weight=keys,
            epochs=3 * STEPS,
        )
        learner = hs.BilevelModel(make_model(), example_weights=theirs)
        learner.compile(
            optimizer=keras.optimizers.SGD(0.1),
            loss="mse",
            hypergradient=hs.estimators.HPOSGLD(0, STEPS),
            hyper_optimizer=keras.optimizers.Adam(0.1),
        )
        is_table = isinstance(theirs, hs.ExampleWeights)
        learner.fit(
            *(X, Y),
            sources=None if is_table else keys,
            outer_data=OUTER,
            batch_size=N,
            steps_per_epoch=3 * STEPS,
            verbose=0,
        )
        assert np.abs(mine.table - before).min() > 0.01
        np.testing.assert_allclose(mine.table, theirs.table, rtol=1e-3)
        assert_equal(
            model.get_weights(),
            learner.model.get_weights(),
            rtol=1e-3,
            atol=1e-5,
        )


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, position):
        part = slice(8 * position, 8 * position + 8)
        return X[part], Y[part], INDICES[part]


def as_arrays():
    return dict(data=(X, Y), sample_weight=INDICES)


def as_dataset():
    data = tf.data.Dataset.from_tensor_slices((X, Y, INDICES)).batch(8)
    return dict(data=(data,))


def as_sequence():
    return dict(data=(Batches(),))


@pytest.mark.parametrize("chain", ["training", "apart"])
@pytest.mark.parametrize("way", [as_arrays, as_dataset, as_sequence])
@pytest.mark.filterwarnings("ignore:The hyperparameters were updated never")
@pytest.mark.filterwarnings("ignore:No chain ran")
def test_training_is_that_with_the_weights_as_sample_weights(way, chain):
    # Weights that do not move; losses and metrics are those of Keras's own.
    weights = make_table()
    model, plain = make_model(), make_model()
    callback = make_callback(weights, chain=chain, warmup_batches=1000)
    validation = dict(validation_data=OUTER)
    logs = fit(model, callback, **way(), **validation).history
    expected = fit(plain, sample_weight=weights.numpy(), **validation).history
    assert_equal(model.get_weights(), plain.get_weights(), rtol=1e-5, atol=1e-6)
    for name, values in expected.items():
        np.testing.assert_allclose(logs[name], values, rtol=1e-4)
    # Afterwards the model is as it was.
    assert not {"compute_loss", "compute_metrics"} & vars(model).keys()
    again = [fit(m, epochs=1).history["loss"] for m in (model, plain)]
    np.testing.assert_allclose(*again, rtol=1e-4)


@pytest.mark.parametrize("inner_data", [None, (X, Y, INDICES)])
def test_chains_apart_find_what_misleads(inner_data):
    y = Y.copy()
    y[:6] += 3.0
    weights = hs.ExampleWeights(N)
    callback = make_callback(
        weights,
        chain="apart",
        every=8,
        sampler=hs.SGLD(0.05),
        inner_data=inner_data and (X, y, INDICES),
        outer_data=(X[6:], Y[6:]),
    )
    fit(make_model(), callback, data=(X, y), sample_weight=INDICES, epochs=80)
    found = weights.numpy()
    assert found[:6].mean() < 0.5 * found[6:].mean()
    callback.hyperparameter_summary(print_fn=lambda line: None)
    assert callback.find_hyperparameters() == [weights]


@pytest.mark.parametrize(
    "chain", ["training", pytest.param("apart", marks=pytest.mark.slow)]
)
def test_two_replicas_weigh_as_one_does(mirrored, chain):
    learned = []
    for scope in (tf.distribute.get_strategy().scope, mirrored.scope):
        with scope():
            weights = make_table()
            model = make_model()
            callback = make_callback(
                weights,
                chain=chain,
                every="auto" if chain == "training" else STEPS,
                inner_data=None if chain == "training" else (X, Y, INDICES),
            )
        fit(model, callback, sample_weight=INDICES)
        learned.append([weights.table.numpy(), *model.get_weights()])
    start = make_table().table
    assert np.abs(learned[0][0] - start).max() > 0.01
    assert_equal(*learned, rtol=1e-4, atol=1e-5)


class OwnStep(keras.Sequential):
    """Computes the loss by itself."""

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


class OldLoss(keras.Sequential):
    """Has the arguments that Keras had before version 3.3."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return super().compute_loss(x, y, y_pred, sample_weight)


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (keras.Sequential, {}, "must stand where `fit` has .*Received: None"),
        (
            keras.Sequential,
            {"sample_weight": np.ones(N)},
            "must stand where .*Received: numbers of type .*float32",
        ),
        (OwnStep, {"sample_weight": INDICES}, "must call .*OwnStep"),
        (OldLoss, {"sample_weight": INDICES}, "the argument `training`"),
    ],
)
def test_what_cannot_be_weighed_is_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(make_model(make=make), make_callback(make_table()), **arguments)


def test_inner_data_without_indices_are_refused():
    callback = make_callback(make_table(), inner_data=(X, Y))
    with pytest.raises(ValueError, match=r"must be \(inputs, targets, indices"):
        fit(make_model(), callback, sample_weight=INDICES)
    with pytest.raises(TypeError, match="`example_weights` must be an inst"):
        make_callback(np.ones(N))


def test_fit_that_was_broken_off_is_mended_by_the_next_one():
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = make_model()
    callback = make_callback(make_table())
    with pytest.raises(KeyboardInterrupt):
        fit(model, callback, Stop(), sample_weight=INDICES)
    with pytest.raises(ValueError, match="broken off"):
        fit(model)
    fit(model, make_callback(make_table()), sample_weight=INDICES)
    assert not {"compute_loss", "compute_metrics"} & vars(model).keys()
    fit(model)


def test_copies_have_weights_of_their_own():
    weights = make_table()
    callback = copy.deepcopy(make_callback(weights))
    assert callback.example_weights is not weights
    np.testing.assert_allclose(callback.example_weights.numpy(), 0.5)


@pytest.mark.slow
def test_backup_has_the_weights(tmp_path):
    def run(epochs, interrupted=()):
        weights = make_table()
        model = make_model(keras.optimizers.Adam(0.01))
        callbacks = [
            make_callback(weights, backup_dir=str(tmp_path / "own")),
            keras.callbacks.BackupAndRestore(str(tmp_path / "keras")),
            *interrupted,
        ]
        fit(model, *callbacks, sample_weight=INDICES, epochs=epochs)
        return [weights.table.numpy(), *model.get_weights()]

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    expected = run(4)
    with pytest.raises(KeyboardInterrupt):
        run(4, [Stop()])
    for a, b in zip(run(4), expected, strict=True):
        np.testing.assert_array_equal(a, b)
