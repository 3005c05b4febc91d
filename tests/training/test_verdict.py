"""What is said at the end of a `fit`: each fault is provoked, and named."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import make_data

import keras_hposgld as hs
from keras_hposgld.training.verdict import Verdict


def make_model(**kind):
    keras.utils.set_random_seed(2)
    arguments = {"granularity": "input", "max_value": 5.0} | kind
    layer = keras.layers.Dense(
        1, kernel_regularizer=hs.regularizers.LearnableL2(0.05, **arguments)
    )
    return keras.Sequential([keras.Input((6,)), layer])


def fit(way, model, hyper_optimizer=None, outer=None, epochs=10, **arguments):
    """Fits a model by the callback or as a learner; returns its history."""
    x, y = make_data()
    outer = outer or make_data(40, seed=1)
    hyper_optimizer = hyper_optimizer or keras.optimizers.Adam(0.05)
    common = {"batch_size": 16, "epochs": epochs, "verbose": 0} | arguments
    outer_loss = common.pop("outer_loss", None)
    if way == "callback":
        model.compile(keras.optimizers.Adam(0.01), loss="mse")
        callback = hs.callbacks.LearnHyperparameters(
            outer,
            hyper_optimizer=hyper_optimizer,
            outer_loss=outer_loss,
            every=3,
            seed=1,
        )
        return model.fit(x, y, callbacks=[callback], **common)
    learner = hs.BilevelModel(model, seed=1)
    learner.compile(
        optimizer=hs.SGLD(0.02),
        loss="mse",
        outer_loss=outer_loss,
        hypergradient=hs.estimators.HPOSGLD(1, 2),
        hyper_optimizer=hyper_optimizer,
    )
    return learner.fit(x, y, outer_data=outer, **common)


SLOW_LEARNER = pytest.param("learner", marks=pytest.mark.slow)
both = pytest.mark.parametrize("way", ["callback", "learner"])
mostly = pytest.mark.parametrize("way", ["callback", SLOW_LEARNER])


@both
def test_nothing_is_said_where_learning_went_well(way):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(way, make_model())


@both
def test_too_few_chains(way):
    with pytest.warns(UserWarning, match="updated 4 times, which is too few"):
        fit(way, make_model(), epochs=2)


@mostly
def test_strengths_at_their_bound(way):
    model = make_model(max_value=0.0502)  # they start at almost that
    with pytest.warns(UserWarning, match="at their bound.*Raise `max_value`"):
        fit(way, model)


@both
def test_skipped_updates(way):
    outer = make_data(40, seed=1)
    outer[1][:20] = np.nan
    with pytest.warns(UserWarning, match="updates .* were skipped.*first in"):
        history = (
            fit(way, make_model(), outer=outer, outer_batch_size=1)
            if (way == "learner")
            else fit(way, make_model(), outer=outer, epochs=3)
        )
    assert sum(history.history["skipped_updates"]) > 0


@mostly
def test_strengths_without_a_gradient(way):
    def constant(y_true, y_pred):
        return tf.reduce_mean(y_true) + 0.0 * tf.reduce_mean(y_pred)

    with pytest.warns(UserWarning, match="did not move in .* updates"):
        fit(way, make_model(), outer_loss=constant)


@mostly
def test_optimizer_that_stands_still_is_no_missing_gradient(way):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(way, make_model(), keras.optimizers.SGD(0.0))


@mostly
def test_more_strengths_than_the_outer_data_pay_for(way):
    def model(**kind):
        keras.utils.set_random_seed(2)
        strength = hs.regularizers.LearnableL2(0.05, max_value=5.0, **kind)
        hidden = keras.layers.Dense(80, kernel_regularizer=strength)
        return keras.Sequential(
            [keras.Input((6,)), hidden, keras.layers.Dense(1)]
        )

    match = "480 strengths without a prior, and 40 outer examples"
    with pytest.warns(UserWarning, match=match):
        fit(way, model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(way, model(shrinkage=1.0))
        fit(way, model(granularity="input"))


class Learned:
    """An outer level that has moved its one variable often enough."""

    estimator = hs.estimators.HPOSGLD()

    def __init__(self):
        self.hyper_optimizer = keras.optimizers.SGD(0.1)
        self.hyper_optimizer.iterations.assign(100)


def verdict_on(outer, separate):
    verdict = Verdict([], Learned(), 40.0, advice="")
    for loss, own in zip(outer, separate, strict=True):
        verdict.see({"outer_loss": loss, "val_outer_loss": own})
    return verdict


def test_memorized_outer_set():
    falling = [1.0, 0.8, 0.6, 0.4, 0.2]
    rising = [1.0, 0.7, 0.8, 0.9, 1.0]
    with pytest.warns(UserWarning, match="is being memorized.*epoch 2"):
        verdict_on(falling, rising).warn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verdict_on(falling, [1.0, 0.7, 0.6, 0.65, 0.62]).warn()  # by little
        verdict_on(rising, rising).warn()  # which is something else
        verdict_on(falling[1:], rising[1:]).warn()  # too short to say
        verdict_on(falling, [np.nan] * 5).warn()  # no such data


@mostly
def test_epochs_are_watched_for_memorizing(way, monkeypatch):
    seen = []
    see = Verdict.see
    monkeypatch.setattr(
        Verdict, "see", lambda self, logs: (see(self, logs), seen.append(self))
    )
    history = fit(way, make_model(), validation_data=make_data(30, seed=2))
    losses = seen[-1].losses
    assert len(losses) == 10
    np.testing.assert_allclose(
        np.transpose(losses),
        [history.history["outer_loss"], history.history["val_outer_loss"]],
    )


def test_chains_that_were_lost_are_told_once_halving_is_no_cure():
    class Guard:
        cause = staticmethod(lambda: "the inner objective")

    level = Learned()
    level.guard = Guard
    verdict = Verdict([], level, 40.0, advice="")
    verdict.see({"skipped_updates": 3.0, "halvings": 3.0})
    assert verdict._skipped() is None
    verdict.see({"skipped_updates": 1.0, "halvings": 4.0})
    assert "4 updates of the hyperparameters were" in verdict._skipped()
    # Where nothing halves the steps, one is told.
    verdict = Verdict([], level, 40.0, advice="")
    verdict.see({"skipped_updates": 1.0})
    assert "1 update of the hyperparameters was" in verdict._skipped()


def test_updates_that_were_skipped_hide_no_missing_gradient():
    class Owner:
        hyperparameter_variables = [keras.Variable(np.zeros(3), name="u")]

    level = Learned()
    verdict = Verdict([Owner], level, 40.0, advice="")
    level.hyper_optimizer.iterations.assign(105)  # of nine, four were skipped
    verdict.see({"skipped_updates": 4.0})
    assert "did not move in 5 updates" in verdict._without_gradient()
