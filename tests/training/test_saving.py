"""Every way in which Keras and TensorFlow save, and runs that are killed."""

import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs


def make_data(n=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    return x, (x[:, :1] - x[:, 1:2]).astype("float32")


def make_learner(start="continue"):
    def strength():
        return hs.regularizers.LearnableL2(0.05, max_value=5.0)

    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "tanh", kernel_regularizer=strength()),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1, kernel_regularizer=strength()),
        ]
    )
    learner = hs.BilevelModel(model, seed=1)
    learner.compile(
        optimizer=hs.SGLD(0.05, temperature=1e-3, seed=3),
        loss="mse",
        hypergradient=hs.estimators.AdjointSGLD(2, 2, warm_start=True),
        hyper_optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5),
            clipnorm=1.0,
        ),
        start=start,
    )
    return learner


def fit(learner, *callbacks, **arguments):
    defaults = dict(
        outer_data=make_data(32, seed=1), batch_size=4, epochs=2, verbose=0
    )
    return learner.fit(
        *make_data(), callbacks=list(callbacks), **(defaults | arguments)
    )


def everything(learner):
    """All state that a further outer iteration depends on."""
    return [
        np.array(variable)
        for variable in (
            *learner.variables,
            *learner.hyperparameters,
            *learner.optimizer.variables,
            *learner.hyper_optimizer.variables,
            *learner.outer_level.kept_copies.values,
            *learner.starting_weights.values,
        )
    ]


def assert_same(first, second):
    for a, b in zip(everything(first), everything(second), strict=True):
        np.testing.assert_array_equal(a, b)


def prepared(start):
    learner = make_learner(start)
    # Builds all there is to build.
    fit(learner, epochs=1, steps_per_epoch=learner.hypergradient.num_steps)
    return learner


def by_file(learner, folder):
    learner.save(folder / "learner.keras")
    return keras.models.load_model(folder / "learner.keras")


def by_weights(learner, folder):
    learner.save_weights(folder / "learner.weights.h5")
    other = prepared(learner.start)
    other.load_weights(folder / "learner.weights.h5")
    return other


def by_checkpoint(learner, folder):
    path = tf.train.Checkpoint(learner=learner).save(str(folder / "state"))
    other = prepared(learner.start)
    status = tf.train.Checkpoint(learner=other).restore(path)
    status.assert_existing_objects_matched()
    return other


@pytest.mark.parametrize(
    "way, start",
    [
        (by_file, "continue"),
        (by_file, "initial"),
        (by_weights, "initial"),
        (by_checkpoint, "continue"),
        pytest.param(by_weights, "continue", marks=pytest.mark.slow),
        pytest.param(by_checkpoint, "initial", marks=pytest.mark.slow),
    ],
)
def test_training_goes_on_from_what_was_saved(tmp_path, way, start):
    learner = make_learner(start)
    fit(learner)
    other = way(learner, tmp_path)
    fit(learner)
    fit(other)
    assert int(other.outer_iterations) == 16
    assert_same(learner, other)


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    import keras, numpy as np
    from test_saving import everything, fit, make_learner

    folder, kill = sys.argv[2], sys.argv[3] == "kill"

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            second = 2 * learner.hypergradient.num_steps - 1
            if kill and self.epoch == 2 and batch == second:
                os.kill(os.getpid(), signal.SIGKILL)

    learner = make_learner()
    backup = keras.callbacks.BackupAndRestore(os.path.join(folder, "backup"))
    fit(learner, backup, Kill(), epochs=4)
    np.savez(os.path.join(folder, "end.npz"), *everything(learner))
    """
)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_end(tmp_path):
    def run(folder, mode):
        folder.mkdir(exist_ok=True)
        here = os.path.dirname(__file__)
        return subprocess.run(
            [sys.executable, "-c", KILLED, here, str(folder), mode],
            capture_output=True,
            text=True,
            timeout=300,
        )

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    done = run(whole, "run")
    assert done.returncode == 0, done.stderr[-2000:]
    assert run(broken, "kill").returncode == -signal.SIGKILL
    assert not (broken / "end.npz").exists()
    resumed = run(broken, "run")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    with np.load(whole / "end.npz") as a, np.load(broken / "end.npz") as b:
        assert len(a.files) > 20
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_best_weights_come_back_with_their_hyperparameters():
    learner = make_learner()
    seen = []

    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append([np.array(w) for w in learner.weights])
            logs["score"] = [3.0, 1.0, 2.0, 4.0][epoch]

    fit(
        learner,
        Score(),
        keras.callbacks.EarlyStopping(
            "score", mode="min", patience=5, restore_best_weights=True
        ),
        epochs=4,
    )
    own = {id(v) for v in learner.hyperparameters}
    is_own = [id(weight) in own for weight in learner.weights]
    assert sum(is_own) == 2
    for weight, best, last in zip(
        learner.weights, seen[1], seen[3], strict=True
    ):
        if id(weight) in own:
            assert np.any(best != last)
        np.testing.assert_array_equal(weight, best)


def test_learned_strengths_go_to_a_new_model_and_plain_training(tmp_path):
    learner = make_learner()
    fit(learner)
    learned = learner.model
    new = type(learned).from_config(learned.get_config())
    hs.find_hyperparameters(new)  # makes the strengths, as `fit` would
    new.set_weights(learned.get_weights())
    (a, b), (c, d) = (
        [owner.hyperparameter_variables[0].numpy() for owner in owners]
        for owners in map(hs.find_hyperparameters, (learned, new))
    )
    np.testing.assert_array_equal(a, c)
    np.testing.assert_array_equal(b, d)
    np.testing.assert_allclose(sum(new.losses), sum(learned.losses))
    x, y = make_data()
    for model in (learned, new):
        for layer in model.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        model.compile(keras.optimizers.SGD(0.05), "mse")
        model.fit(x, y, shuffle=False, verbose=0)
    for one, other in zip(learned.weights, new.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    for variable, value in zip(
        hs.find_hyperparameters(new), (a, b), strict=True
    ):  # plain training leaves them alone
        np.testing.assert_array_equal(
            variable.hyperparameter_variables[0], value
        )


def is_last(weight):
    return weight.shape == (6, 1)


def test_filter_chooses_the_weights_and_a_file_remembers_it(tmp_path):
    network = [keras.Input((4,)), keras.layers.Dense(6), keras.layers.Dense(1)]
    learner = hs.BilevelModel(
        keras.Sequential(network),
        regularizer=hs.regularizers.LearnableL1(0.01, max_value=5.0),
        filter=is_last,
    )
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, 1),
    )
    fit(learner)
    assert [v.shape for v in learner.hyperparameters] == [(6, 1)]
    loaded = by_file(learner, tmp_path)
    assert [v.shape for v in loaded.hyperparameters] == [(6, 1)]
    np.testing.assert_array_equal(
        loaded.hyperparameters[0], learner.hyperparameters[0]
    )
    np.testing.assert_allclose(sum(loaded.losses), sum(learner.losses))
