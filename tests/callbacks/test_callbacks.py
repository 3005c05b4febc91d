"""The callbacks that watch: history, TensorBoard, diagnostics of chains."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs


def make_data(n=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    return x, (x[:, :1] - x[:, 1:2]).astype("float32")


def make_model():
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                3,
                kernel_regularizer=hs.regularizers.LearnableL2(
                    0.05, granularity="input", max_value=5.0
                ),
            ),
            keras.layers.Dense(
                1,
                kernel_regularizer=hs.regularizers.LearnableL1L2(
                    0.02, granularity="tensor", max_value=5.0
                ),
            ),
        ]
    )
    model.compile("adam", "mse")
    return model


def make_learner(estimator=None, **arguments):
    learner = hs.BilevelModel(make_model(), seed=1)
    learner.compile(
        optimizer=hs.SGLD(0.05, temperature=1e-3, seed=3),
        loss="mse",
        hypergradient=estimator or hs.estimators.HPOSGLD(1, 5),
        **arguments,
    )
    return learner


def fit(learner, *callbacks, **arguments):
    defaults = dict(outer_split=0.5, batch_size=5, epochs=3, verbose=0)
    return learner.fit(
        *make_data(), callbacks=list(callbacks), **(defaults | arguments)
    )


def in_a_plain_fit(*callbacks, **arguments):
    """The same in the other mode: (learning, history)."""
    learning = hs.callbacks.LearnHyperparameters(
        make_data(20, seed=1),
        hs.estimators.HPOSGLD(1, 5),
        hs.SGLD(0.05, temperature=1e-3),
        every=2,
        batch_size=3,
    )
    model = make_model()
    history = model.fit(
        *make_data(),
        callbacks=[learning, *callbacks],
        epochs=3,
        batch_size=5,
        verbose=0,
        **arguments,
    )
    return learning, history


def test_history_has_the_start_and_the_end_of_each_epoch(tmp_path):
    course = hs.callbacks.HyperparameterHistory(str(tmp_path / "course.npz"))
    learner = make_learner()
    before = learner.hyperparameter_values()
    fit(learner, course)
    assert course.epochs == [0, 1, 2, 3]
    assert list(course.values) == list(before)
    for path, after in learner.hyperparameter_values().items():
        np.testing.assert_array_equal(course.values[path][0], before[path])
        np.testing.assert_array_equal(course.values[path][3], after)
        assert np.any(course.values[path][1] != course.values[path][2])
    with np.load(tmp_path / "course.npz") as saved:
        np.testing.assert_array_equal(saved["epochs"], course.epochs)
        for path, values in course.values.items():
            np.testing.assert_array_equal(saved[path], np.stack(values))


def test_history_file_is_continued_from_a_later_epoch(tmp_path):
    path = str(tmp_path / "course.npz")
    learner = make_learner()
    fit(learner, hs.callbacks.HyperparameterHistory(path))
    course = hs.callbacks.HyperparameterHistory(path)
    fit(learner, course, initial_epoch=2, epochs=4)
    assert course.epochs == [0, 1, 2, 3, 4]
    again = hs.callbacks.HyperparameterHistory(path)
    fit(learner, again, epochs=1)
    assert again.epochs == [0, 1]
    with np.load(path) as saved:
        assert saved["epochs"].tolist() == [0, 1]


def test_history_is_written_to_paths_with_a_scheme():
    path = "ram://course.npz"
    learning, _ = in_a_plain_fit(hs.callbacks.HyperparameterHistory(path))
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    assert content.startswith(b"PK")
    assert not tf.io.gfile.exists(f"{path}.new")


def events(log_dir):
    """{(tag, step): (plugin, array)} of all summaries in a directory."""
    found = {}
    for name in tf.io.gfile.listdir(log_dir):
        for record in tf.data.TFRecordDataset(f"{log_dir}/{name}"):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                found[value.tag, event.step] = (
                    value.metadata.plugin_data.plugin_name,
                    tf.make_ndarray(value.tensor),
                )
    return found


@pytest.mark.parametrize("scheme", ["", "ram://board"])
def test_tensorboard_gets_histograms_and_scalars(tmp_path, scheme):
    log_dir = scheme or str(tmp_path / "board")
    learner = make_learner()
    history = fit(
        learner, hs.callbacks.HyperparameterTensorBoard(log_dir)
    ).history
    found = events(log_dir)
    assert {step for _, step in found} == {0, 1, 2, 3}
    for path, value in learner.hyperparameter_values().items():
        kind, buckets = found[f"hyperparameters/{path}", 3]
        assert kind == "histograms" and buckets[:, 2].sum() == value.size
        for name in ("min", "median", "max"):
            kind, scalar = found[f"hyperparameters_{name}/{path}", 3]
            assert kind == "scalars"
            np.testing.assert_allclose(scalar, getattr(np, name)(value))
        assert buckets[0, 0] <= value.min() and buckets[-1, 1] >= value.max()
    raw = learner.hyperparameters[0]
    path = next(iter(learner.hyperparameter_values()))
    _, buckets = found[f"unconstrained/{path}", 3]
    np.testing.assert_allclose(buckets[0, 0], np.min(raw), rtol=1e-5)
    for name in ("outer_loss", "hypergradient_norm", "skipped_updates"):
        np.testing.assert_allclose(
            found[f"epoch_{name}", 3][1], history[name][2], rtol=1e-6
        )


@pytest.mark.slow
def test_tensorboard_itself_reads_what_is_written(tmp_path):
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="it is what reads the files",
    )
    in_a_plain_fit(hs.callbacks.HyperparameterTensorBoard(tmp_path))
    accumulator = accumulators.EventAccumulator(
        str(tmp_path), size_guidance={"tensors": 0}
    )
    accumulator.Reload()
    tags = accumulator.Tags()["tensors"]
    assert sum(tag.startswith("hyperparameters/") for tag in tags) == 3
    assert "epoch_outer_loss" in tags


def estimates_seen(learner_or_callback):
    seen = []
    learner_or_callback.outer_level.observers.append(
        lambda estimate: seen.append(
            (estimate.outer_losses.numpy(), float(estimate.standard_error))
        )
    )
    return seen


def assert_logs_are_means(history, seen, per_epoch):
    assert len(seen) == per_epoch * len(history["r_hat"])
    for epoch in range(len(history["r_hat"])):
        own = seen[epoch * per_epoch :][:per_epoch]
        summaries = [hs.diagnostics.chain_summary(losses) for losses, _ in own]
        for key, values in {
            "effective_sample_size": [
                s.effective_sample_size for s in summaries
            ],
            "r_hat": [s.potential_scale_reduction for s in summaries],
            "standard_error": [error for _, error in own],
        }.items():
            np.testing.assert_allclose(
                history[key][epoch], np.mean(values), rtol=1e-4
            )


@pytest.mark.parametrize(
    "estimator", [hs.estimators.HPOSGLD(1, 5), hs.estimators.AdjointSGLD(1, 5)]
)
def test_diagnostics_are_means_over_the_chains(estimator):
    learner = make_learner(estimator, run_eagerly=True)
    seen = estimates_seen(learner)
    history = fit(learner, hs.callbacks.ChainDiagnostics()).history
    assert_logs_are_means(history, seen, per_epoch=1)
    assert all(len(losses) == 5 for losses, _ in seen)


@pytest.mark.slow
def test_diagnostics_are_the_same_in_a_graph_and_leave_it_as_it_was():
    eager, graph = make_learner(run_eagerly=True), make_learner()
    first = fit(eager, hs.callbacks.ChainDiagnostics()).history
    second = fit(graph, hs.callbacks.ChainDiagnostics()).history
    for key in ("effective_sample_size", "r_hat", "standard_error"):
        np.testing.assert_allclose(first[key], second[key], rtol=1e-3)
    assert graph.outer_level.observers == []
    history = fit(graph).history
    assert "r_hat" not in history


def test_diagnostics_of_chains_in_a_plain_fit():
    learning = hs.callbacks.LearnHyperparameters(
        make_data(20, seed=1),
        hs.estimators.HPOSGLD(0, 6),
        every=4,
        batch_size=2,
    )
    model = make_model()
    model.run_eagerly = True
    seen = estimates_seen(learning)
    history = model.fit(
        *make_data(),
        callbacks=[learning, hs.callbacks.ChainDiagnostics(learning)],
        batch_size=5,
        epochs=2,
        verbose=0,
    ).history
    assert_logs_are_means(history, seen, per_epoch=2)


@pytest.mark.parametrize(
    "estimator", [hs.estimators.HPOSGLD(1, 3), hs.estimators.RMD(5)]
)
def test_diagnostics_need_samples(estimator):
    with pytest.raises(ValueError, match="at least 4 samples"):
        fit(make_learner(estimator), hs.callbacks.ChainDiagnostics())


def test_diagnostics_of_a_plain_fit_need_the_callback():
    with pytest.raises(ValueError, match="`learning` must be given"):
        in_a_plain_fit(hs.callbacks.ChainDiagnostics())
