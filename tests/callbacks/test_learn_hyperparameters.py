"""Learning hyperparameters in the `fit` of an ordinary Keras model."""

import os
import random
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import make_data
from builders import state

import keras_hposgld as hs

LEARNED_LOGS = ("outer_loss", "hypergradient_norm", "skipped_updates")


def make_model(optimizer="adam", regularizer=True, **compile_arguments):
    keras.utils.set_random_seed(4)
    strength = (
        hs.regularizers.LearnableL2(0.05, granularity="input", max_value=5.0)
        if regularizer
        else None
    )
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, "relu", kernel_regularizer=strength),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(1, name="last"),
        ]
    )
    model.compile(optimizer, loss="mse", metrics=["mae"], **compile_arguments)
    return model


def make_callback(**arguments):
    defaults = dict(
        outer_data=make_data(64, seed=1),
        estimator=hs.estimators.HPOSGLD(2, 4),
        sampler=hs.SGLD(0.02, temperature=1e-4, seed=5),
        hyper_optimizer=keras.optimizers.Adam(0.1),
        every=3,
        batch_size=8,
        seed=7,
    )
    return hs.callbacks.LearnHyperparameters(**(defaults | arguments))


def fit(model, *callbacks, **arguments):
    x, y = make_data()
    defaults = dict(batch_size=8, epochs=3, verbose=0)
    return model.fit(x, y, callbacks=list(callbacks), **(defaults | arguments))


def frozen_hyper_optimizer():
    return keras.optimizers.SGD(0.0)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        lambda: keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(0.01, 30)
        ),
    ],
)
@pytest.mark.parametrize(
    "steps_per_execution", [pytest.param(1, marks=pytest.mark.slow), 4]
)
def test_training_is_what_it_is_without(make_optimizer, steps_per_execution):
    # Hyperparameters that do not move leave no trace in the training: not in
    # weights, moving statistics, dropout's generator, optimizer or metrics.
    arguments = dict(steps_per_execution=steps_per_execution)
    plain = make_model(make_optimizer(), **arguments)
    expected = fit(plain).history
    model = make_model(make_optimizer(), **arguments)
    callback = make_callback(hyper_optimizer=frozen_hyper_optimizer())
    random_states = random.getstate(), np.random.get_state()[1].tolist()
    history = fit(model, callback).history
    assert random_states == (
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )
    assert int(callback.outer_level.iterations) > 4
    for a, b in zip(state(model), state(plain), strict=True):
        np.testing.assert_array_equal(a, b)
    for key in expected:
        assert history[key] == expected[key], key


def test_chain_is_the_functional_estimate_and_one_step():
    model = make_model()
    callback = make_callback(
        layer_state="frozen",
        every=12,
        hyper_optimizer=keras.optimizers.SGD(1.0),
    )

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 11:
                self.before = callback.hyperparameters[0].numpy()

    watch = Watch()
    fit(model, watch, callback, epochs=1)
    assert int(callback.outer_level.iterations) == 1

    inner = callback.recent.stacked(6)
    outer = next(iter(callback._chains.data.levels[-1].chains(6, lambda: 0)))
    mean, variance = (
        model.layers[1].moving_mean,
        model.layers[1].moving_variance,
    )

    def predict(params, x):
        w1, b1, gamma, beta, w2, b2 = params
        hidden = tf.nn.relu(x @ w1 + b1)
        hidden = (hidden - mean) / tf.sqrt(variance + 1e-3) * gamma + beta
        return hidden @ w2 + b2

    def outer_objective(raw, params, batch):
        return tf.reduce_mean((predict(params, batch[0]) - batch[1]) ** 2)

    def inner_objective(raw, params, batch):
        penalty = 5.0 * tf.sigmoid(raw)[:, None] * params[0] ** 2
        return outer_objective(raw, params, batch) + tf.reduce_sum(penalty)

    estimate = hs.hypergradient(
        hs.BilevelProblem(inner_objective, outer_objective),
        tf.constant(watch.before),
        [tf.constant(v) for v in model.trainable_variables],
        estimator=hs.estimators.HPOSGLD(2, 4),
        sampler=callback.sampler,
        inner_batches=inner,
        outer_batches=outer,
        seed=callback.sampler.chain_seed,
    )
    moved = callback.hyperparameters[0].numpy() - watch.before
    assert np.abs(moved).max() > 1e-5
    np.testing.assert_allclose(
        moved, -estimate.hypergradient, rtol=1e-3, atol=1e-6
    )


def test_chain_works_on_the_examples_that_were_trained_on_last():
    model = make_model()
    callback = make_callback()
    x, y = make_data()
    fit(model, callback, epochs=2, shuffle=False)
    xs, ys = callback.recent.stacked(6)
    assert xs.shape == (6, 8, 6)

    def rows(array):
        return {row.tobytes() for row in np.asarray(array)}

    assert rows(tf.reshape(xs, [-1, 6])) == rows(x[-48:])
    np.testing.assert_array_equal(np.sort(np.ravel(ys)), np.sort(y[-48:, 0]))
    # Inputs and targets stay together.
    targets = {row.tobytes(): t for row, t in zip(x, y[:, 0], strict=True)}
    for row, target in zip(
        tf.reshape(xs, [-1, 6]).numpy(), np.ravel(ys), strict=True
    ):
        assert targets[row.tobytes()] == target


@pytest.mark.parametrize(
    "batch_size, jit_compile",
    [
        (7, False),
        pytest.param(96, False, marks=pytest.mark.slow),
        pytest.param(7, True, marks=pytest.mark.slow),
        pytest.param(96, True, marks=pytest.mark.slow),
    ],
)
def test_batches_of_any_size_are_recorded(batch_size, jit_compile):
    model = make_model(jit_compile=jit_compile)
    callback = make_callback(every=1)
    fit(model, callback, epochs=2, batch_size=batch_size, shuffle=False)
    x, _ = make_data()
    xs, _ = callback.recent.stacked(6)
    assert {row.tobytes() for row in tf.reshape(xs, [-1, 6]).numpy()} == {
        row.tobytes() for row in x[-48:]
    }
    assert int(callback.outer_level.iterations) > 0


@pytest.mark.parametrize(
    "estimator",
    [
        # A warm adjoint grows: weights before a normalization that are pulled
        # to zero have a curvature which the steps cannot follow.
        hs.estimators.AdjointSGLD(2, 3, warm_start=False),
        pytest.param(hs.estimators.IFTCG(num_steps=5), marks=pytest.mark.slow),
    ],
)
def test_it_learns_which_inputs_count(estimator):
    model = make_model()
    callback = make_callback(estimator=estimator, every=2)
    history = fit(model, callback, epochs=30).history
    (strengths,) = callback.hyperparameter_values().values()
    assert strengths[2:].mean() > 2 * strengths[:2].mean()
    for key in LEARNED_LOGS:
        assert np.all(np.isfinite(history[key][1:]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:No chain ran")
def test_number_of_chains_and_the_warm_up():
    # 36 batches of 8; the first 48 examples are there after the sixth.
    for arguments, expected in [
        (dict(every=3), 11),
        (dict(every=3, warmup_batches=18), 7),
        (dict(every=100), 0),
    ]:
        callback = make_callback(**arguments)
        history = fit(make_model(), callback).history
        assert int(callback.outer_level.iterations) == expected
        assert np.isnan(history["outer_loss"]).all() == (expected == 0)


@pytest.mark.slow
def test_it_works_beside_the_callbacks_of_keras(tmp_path):
    pytest.importorskip("tensorboard", reason="Keras's callback writes by it")
    model = make_model()
    callback = make_callback()
    history = fit(
        model,
        callback,
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.keras", monitor="val_mae", save_best_only=True
        ),
        keras.callbacks.ReduceLROnPlateau("val_mae", patience=1, min_delta=9),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        keras.callbacks.TensorBoard(tmp_path / "board"),
        keras.callbacks.EarlyStopping(
            "outer_loss", mode="min", patience=2, min_delta=9
        ),
        validation_data=make_data(32, seed=2),
        epochs=8,
    ).history
    assert len(history["loss"]) == 3  # stopped early, by what is learned
    assert history["learning_rate"][-1] < history["learning_rate"][0]
    head, *lines = (tmp_path / "log.csv").read_text().splitlines()
    assert set(LEARNED_LOGS) <= set(head.split(",")) and len(lines) == 3
    loaded = keras.models.load_model(tmp_path / "best.keras")
    assert hs.find_hyperparameters(loaded)[0].hyperparameter_values()


@pytest.mark.slow
def test_best_weights_come_back_with_their_hyperparameters():
    model = make_model()
    callback = make_callback(hyper_optimizer=keras.optimizers.SGD(3.0))
    course = hs.callbacks.HyperparameterHistory()

    class Score(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = [3.0, 1.0, 2.0, 4.0][epoch]

    fit(
        model,
        callback,
        course,
        Score(),
        keras.callbacks.EarlyStopping(
            "score", mode="min", patience=5, restore_best_weights=True
        ),
        epochs=4,
    )
    ((path, values),) = course.values.items()
    assert np.any(values[2] != values[4])
    np.testing.assert_array_equal(
        callback.hyperparameter_values()[path], values[2]
    )


@pytest.mark.slow
def test_model_is_left_as_it_was():
    model = make_model()
    callback = make_callback()
    fit(model, callback)
    assert "train_step" not in vars(model)
    chains, recorded = (
        int(callback.outer_level.iterations),
        int(callback.recent.num_written),
    )
    fit(model)
    assert int(callback.recent.num_written) == recorded
    fit(model, callback)  # and it may be used again
    assert int(callback.outer_level.iterations) > chains

    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, callback, Break())
    recorded = int(callback.recent.num_written)
    fit(model, callback, epochs=1)
    assert int(callback.recent.num_written) == recorded + 96


def test_regularizer_is_attached_to_a_model_made_elsewhere():
    model = make_model(regularizer=False)
    callback = make_callback(
        regularizer=hs.regularizers.LearnableL1(
            0.01, max_value=1.0, center="initial"
        ),
        filter=lambda weight: weight.path.endswith("last/kernel"),
    )
    fit(model, callback)
    ((path, values),) = callback.hyperparameter_values().items()
    assert path.endswith("last/kernel/l1") and values.shape == (16, 1)
    assert np.all(values != np.float32(0.01))


def test_numbers_that_are_not_finite_never_reach_the_hyperparameters():
    x, y = make_data(64, seed=1)
    callback = make_callback(outer_data=(x, y * np.nan), max_skipped_updates=2)
    model = make_model()
    with pytest.raises(RuntimeError, match="the outer objective"):
        fit(model, callback)
    for variable in callback.hyperparameters:
        assert len(np.unique(variable)) == 1


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(sampler=3), TypeError, "`sampler` must"),
        (dict(every=0), ValueError, "`every` must be at least 1"),
        (dict(batch_size=0), ValueError, "`batch_size` must be at least 1"),
        (dict(layer_state="thawed"), ValueError, "`layer_state` must be one"),
        (dict(estimator="sgd"), ValueError, "Unknown estimator"),
        (dict(warmup_batches=-1), ValueError, "`warmup_batches` must be at"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, message):
    with pytest.raises(error, match=message):
        make_callback(**arguments)


def test_what_cannot_be_learned_is_refused_when_training_begins():
    with pytest.raises(ValueError, match="no hyperparameters to learn"):
        fit(make_model(regularizer=False), make_callback())
    with pytest.raises(ValueError, match="learning_rate . max_value"):
        fit(make_model(), make_callback(sampler=hs.SGLD(0.5)))
    x, y = make_data(20)
    outer = iter([(x, y)])
    with pytest.raises(RuntimeError, match="`outer_data` must last until"):
        fit(make_model(), make_callback(outer_data=outer))
    learner = hs.BilevelModel(make_model())
    learner.compile(optimizer=hs.SGLD(0.02), loss="mse")
    with pytest.raises(TypeError, match="belongs to the `fit` of a plain"):
        learner.fit(x, y, outer_split=0.5, callbacks=[make_callback()])


RESUMED = textwrap.dedent(
    """
    import os, signal, sys
    import keras, numpy as np
    from test_learn_hyperparameters import fit, make_callback, make_model

    folder, kill = sys.argv[1], sys.argv[2] == "kill"

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            if kill and self.epoch == 2 and batch == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    model = make_model()
    callback = make_callback(backup_dir=os.path.join(folder, "learning"))
    backup = keras.callbacks.BackupAndRestore(os.path.join(folder, "model"))
    fit(model, callback, backup, Kill(), epochs=4, shuffle=False)
    assert not os.path.exists(os.path.join(folder, "learning"))
    hyper_optimizer = callback.outer_level.hyper_optimizer
    variables = [*model.variables, *hyper_optimizer.variables]
    arrays = [np.array(variable) for variable in variables]
    np.savez(os.path.join(folder, "end.npz"), *arrays)
    """
)


def run_script(script, *arguments):
    modules = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": modules},
        capture_output=True,
        text=True,
        timeout=300,
    )


def arrays_in(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_end(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    done = run_script(RESUMED, whole, "run")
    assert done.returncode == 0, done.stderr[-2000:]
    killed = run_script(RESUMED, broken, "kill")
    assert killed.returncode == -signal.SIGKILL
    resumed = run_script(RESUMED, broken, "run")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    for a, b in zip(
        arrays_in(broken / "end.npz"),
        arrays_in(whole / "end.npz"),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_backup_holds_the_state_of_any_sampler(tmp_path):
    def make():
        return make_callback(
            sampler=keras.optimizers.Adam(0.01),
            estimator=hs.estimators.AdjointSGLD(2, 3),
            backup_dir=str(tmp_path / "backup"),
        )

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    model, first, second = make_model(), make(), make()
    with pytest.raises(KeyboardInterrupt):
        fit(model, first, Stop(), epochs=3)
    before = first.outer_level.iterations.numpy()
    assert before > 0
    learned = [variable.numpy() for variable in first.hyperparameters]
    for variable in first.hyperparameters:
        variable.assign(variable + 1.0)  # the backup knows better
    with pytest.raises(KeyboardInterrupt):
        fit(model, second, Stop(), epochs=3, initial_epoch=2)
    assert second.outer_level.iterations.numpy() == before
    assert int(second._num_batches) == int(first._num_batches)
    np.testing.assert_array_equal(
        np.ravel(second.hyperparameters), np.ravel(learned)
    )
    for ours, theirs in zip(
        second.sampler.optimizer.variables,
        first.sampler.optimizer.variables,
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(
        second.outer_level.kept_copies.values,
        first.outer_level.kept_copies.values,
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
        assert np.any(ours.numpy())
