"""What is shown while a `fit` goes on."""

import re

import keras
import numpy as np
import pytest
from builders import make_data

import keras_hposgld as hs
from keras_hposgld.training import progress


def make_model():
    keras.utils.set_random_seed(2)
    strength = hs.regularizers.LearnableL2(0.05, "input", max_value=5.0)
    layer = keras.layers.Dense(1, kernel_regularizer=strength)
    return keras.Sequential([keras.Input((6,)), layer])


def fit(way, outer=None, **arguments):
    x, y = make_data()
    outer = outer or make_data(40, seed=1)
    model, common = make_model(), {"batch_size": 16, "epochs": 3} | arguments
    if way == "callback":
        model.compile(keras.optimizers.Adam(0.01), loss="mse")
        callback = hs.callbacks.LearnHyperparameters(outer, seed=1)
        own = [callback, *common.pop("callbacks", [])]
        return model, model.fit(x, y, callbacks=own, **common)
    learner = hs.BilevelModel(model, seed=1)
    learner.compile(
        optimizer=hs.SGLD(0.02),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, 2),
    )
    return model, learner.fit(x, y, outer_data=outer, **common)


def median_of(model):
    (owner,) = hs.find_hyperparameters(model)
    (value,) = owner.hyperparameter_values().values()
    return float(np.median(value))


@pytest.mark.skipif(
    keras.__version__.startswith("3.8."),
    reason="its bar shows means over the bars before",
)
@pytest.mark.parametrize("verbose", [1, 2])
def test_bar_of_a_learner_shows_what_is_learned_and_no_zeros(verbose, capsys):
    model, history = fit("learner", verbose=verbose)
    text = re.sub(r"\x1b\[[0-9;]*m|\x08", "", capsys.readouterr().out)
    assert "skipped_updates" not in text
    assert f"outer_loss: {history.history['outer_loss'][-1]:.4f}"[:-1] in text
    assert f"median_strength: {median_of(model):.4f}"[:-1] in text
    assert history.history["skipped_updates"] == [0.0] * 3
    assert "median_strength" not in history.history


def test_counter_of_a_learner_is_shown_once_it_has_counted(capsys):
    x, y = make_data(40, seed=1)
    y[:] = np.nan
    with pytest.warns(UserWarning, match="were skipped"):
        _, history = fit("learner", outer=(x, y), verbose=2)
    assert "skipped_updates: " in capsys.readouterr().out
    assert sum(history.history["skipped_updates"]) > 0


def test_callback_logs_the_median_of_the_strengths(capsys):
    model, history = fit("callback", verbose=2)
    median = history.history["median_strength"][-1]
    assert median == pytest.approx(median_of(model))
    assert f"median_strength: {median:.4f}" in capsys.readouterr().out


def test_validation_data_give_the_loss_without_the_penalty():
    data = make_data(30, seed=2)
    model, history = fit("callback", validation_data=data, verbose=0)
    x, y = data
    error = np.mean((model.predict(x, verbose=0) - y) ** 2)
    last = history.history["val_outer_loss"][-1]
    assert last == pytest.approx(float(error), rel=1e-5)
    assert history.history["val_loss"][-1] > 1.001 * last


@pytest.mark.parametrize("kind", ["learner", "callback"])
@pytest.mark.parametrize("monitor", ["outer_loss", "val_outer_loss"])
def test_early_stopping_looks_for_a_low_outer_loss(monitor, kind):
    stopping = keras.callbacks.EarlyStopping(monitor, patience=0)
    _, history = fit(
        kind,
        validation_data=make_data(30, seed=2),
        callbacks=[stopping],
        verbose=0,
    )
    assert len(history.epoch) == 3  # it fell in each of them
    assert stopping.best == min(history.history[monitor])


def test_epoch_without_a_chain_shows_the_last_one():
    _, history = fit("callback", batch_size=32, epochs=4, verbose=0)
    losses = history.history["outer_loss"]  # 3 batches; a chain takes 5
    assert np.isnan(losses[0]) and losses[1] != losses[3]
    assert losses[1] == losses[2] or not np.isnan(losses[2])


def test_bar_of_the_users_own_stays_the_only_one():
    own = keras.callbacks.ProgbarLogger()
    assert progress.shown_progress([own], "auto") == []
    assert progress.shown_progress([], 0) == []
    assert len(progress.shown_progress([], 1)) == 1
