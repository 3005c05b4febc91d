"""Methods that a wrapped model overrides are called, or refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.training.overrides import Loan

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = X[:, :1] - 0.5


class Network(keras.Model):
    """Has a metric of its own, which its loss updates."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.dense = keras.layers.Dense(
            1, kernel_regularizer=hs.regularizers.LearnableL2(0.1)
        )
        self.largest = keras.metrics.Mean(name="largest")

    def call(self, inputs):
        return self.dense(inputs)


class WithTraining(Network):
    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        self.largest.update_state(keras.ops.max(y_pred))
        return 3.0 * loss + keras.ops.mean(y_pred**4)


class WithoutTraining(Network):
    def compute_loss(self, x, y, prediction, weight):
        loss = super().compute_loss(x, y, prediction, weight)
        self.largest.update_state(keras.ops.max(prediction))
        return 3.0 * loss + keras.ops.mean(prediction**4)


class WithMetrics(Network):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        logs = super().compute_metrics(x, y, y_pred, sample_weight)
        self.largest.update_state(keras.ops.max(y_pred))
        return logs | {"largest": self.largest.result()}


def make_model(kind, seed=1):
    keras.utils.set_random_seed(seed)
    model = kind()
    model(X)
    hs.find_hyperparameters(model)
    return model


def make_learner(model, **arguments):
    learner = hs.BilevelModel(model)
    defaults = dict(
        optimizer=hs.SGLD(0.05),
        loss="mse",
        metrics=["mae"],
        hypergradient=hs.estimators.HPOSGLD(1, 2),
        hyper_optimizer=keras.optimizers.SGD(0.0),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, **arguments):
    defaults = dict(outer_data=(X, Y), batch_size=12, verbose=0)
    return learner.fit(X, Y, **(defaults | arguments)).history


@pytest.mark.parametrize("kind", [WithTraining, WithoutTraining, WithMetrics])
def test_training_and_logs_are_those_of_plain_keras(kind):
    # One batch of all examples, and hyperparameters that do not move: three
    # steps of a chain are three epochs of plain training.
    plain, model = make_model(kind), make_model(kind)
    plain.compile(hs.SGLD(0.05), loss="mse", metrics=["mae"])
    expected = plain.fit(X, Y, batch_size=12, epochs=3, verbose=0).history
    learner = make_learner(model)
    history = fit(learner, validation_data=(X, Y))
    for ours, theirs in zip(
        model.trainable_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    for name in ("loss", "mae", "largest"):  # means over the steps
        np.testing.assert_allclose(
            history[name][0], np.mean(expected[name]), rtol=1e-5
        )
    logs = plain.evaluate(X, Y, verbose=0, return_dict=True)
    for name, value in logs.items():
        np.testing.assert_allclose(history[f"val_{name}"], value, rtol=1e-5)
    np.testing.assert_allclose(
        learner.evaluate(X, Y, verbose=0),
        plain.evaluate(X, Y, verbose=0),
        rtol=1e-5,
    )


def test_outer_loss_is_the_compiled_one_without_what_the_model_adds():
    model = make_model(WithTraining)
    learner = make_learner(model)
    logs = learner.evaluate(X, Y, verbose=0, return_dict=True)
    expected = np.mean((model.predict(X, verbose=0) - Y) ** 2)
    np.testing.assert_allclose(logs["outer_loss"], expected, rtol=1e-5)
    assert logs["loss"] > 2 * expected


def test_meta_model_adapts_by_the_loss_of_the_model():
    plain, model = make_model(WithTraining), make_model(WithTraining)
    plain.compile(hs.SGLD(0.05), loss="mse")
    for _ in range(2):
        plain.train_on_batch(X, Y)
    meta = hs.MetaModel(model)
    meta.compile(hs.SGLD(0.05), loss="mse")
    weights = meta._chains.weights_after((X, Y), 2)
    for ours, theirs in zip(weights, plain.trainable_variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_callback_takes_a_loss_without_the_argument_training():
    model = make_model(WithoutTraining)
    model.compile("sgd", loss="mse")
    learn = hs.callbacks.LearnHyperparameters((X, Y), every=1, batch_size=1)
    history = model.fit(
        X, Y, batch_size=1, epochs=3, verbose=0, callbacks=[learn]
    ).history
    assert np.isfinite(history["outer_loss"][-1])


def test_own_compile_of_the_model_is_kept():
    model = make_model(WithTraining)
    model.compile("adam", loss="mae")
    optimizer = model.optimizer
    before = model.evaluate(X, Y, verbose=0)
    learner = make_learner(model, optimizer=hs.SGLD(1e-9))
    fit(learner)
    assert (model.loss, model.optimizer) == ("mae", optimizer)
    np.testing.assert_allclose(
        model.evaluate(X, Y, verbose=0), before, rtol=1e-5
    )


@pytest.mark.parametrize("learner", [hs.BilevelModel, hs.MetaModel])
@pytest.mark.parametrize("name", ["train_step", "test_step"])
def test_own_steps_are_refused_by_name(learner, name):
    kind = type("Own", (Network,), {name: lambda self, data: {}})
    with pytest.raises(ValueError, match=f"{name}.*LearnHyperparameters"):
        learner(kind())


def test_steps_of_keras_are_taken_where_a_callback_had_put_them():
    model = make_model(Network)
    model.train_step = model.train_step
    hs.BilevelModel(model)


def test_loan_within_itself_ends_with_the_outer_one_and_with_an_error():
    lender, borrower = make_model(Network), make_model(Network)
    lender.compile("sgd", "mse")
    loan = Loan(lender, borrower)
    with pytest.raises(KeyError), loan:
        with loan:
            assert borrower.loss == "mse"
        assert borrower._compile_loss is lender._compile_loss
        raise KeyError
    assert (borrower.loss, borrower.compiled) == (None, False)
    assert "optimizer" not in vars(borrower)


class Endpoint(keras.layers.Layer):
    """Adds the squared error of its two inputs as a loss."""

    def call(self, inputs):
        prediction, target = inputs
        self.add_loss(keras.ops.mean((prediction - target) ** 2))
        return prediction


def make_endpoint_model():
    keras.utils.set_random_seed(1)
    x, y = keras.Input((4,)), keras.Input((1,))
    dense = keras.layers.Dense(
        1, kernel_regularizer=hs.regularizers.LearnableL2(0.1)
    )
    model = keras.Model([x, y], Endpoint()([dense(x), y]))
    hs.find_hyperparameters(model)
    return model


def test_added_losses_take_the_place_of_a_compiled_one():
    added, compiled = make_endpoint_model(), make_model(Network)
    compiled.set_weights(added.get_weights())
    of_added = make_learner(added, loss=None, metrics=None)
    histories = [
        of_added.fit(
            [X, Y], Y, outer_data=([X, Y], Y), batch_size=12, verbose=0
        ).history,
        fit(make_learner(compiled)),
    ]
    for name in ("loss", "outer_loss", "hypergradient_norm"):
        np.testing.assert_allclose(
            histories[0][name], histories[1][name], rtol=1e-4
        )


class AddsAndComputes(WithTraining):
    """Its `add_loss` may or may not be what its `compute_loss` is about."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs**2))
        return super().call(inputs)


@pytest.mark.parametrize("kind", [Network, WithTraining, AddsAndComputes])
def test_nothing_to_lower_is_said_before_training(kind):
    learner = make_learner(make_model(kind), loss=None, metrics=None)
    with pytest.raises(ValueError, match="`outer_loss` must be given"):
        fit(learner)
    assert int(learner.outer_iterations) == 0
    learner = make_learner(
        make_model(kind), loss=None, metrics=None, outer_loss="mse"
    )
    assert np.isfinite(fit(learner)["outer_loss"][0])


class Scaled(Network):
    def compute_loss(self, *arguments, **keyword_arguments):
        return 3.0 * super().compute_loss(*arguments, **keyword_arguments)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.largest.update_state(keras.ops.mean(y_pred))
        return super().compute_metrics(x, y, y_pred, sample_weight)


def test_two_replicas_call_the_model_as_one_does(mirrored):
    histories = []
    for strategy in (mirrored, tf.distribute.get_strategy()):
        with strategy.scope():
            learner = make_learner(make_model(Scaled))
        histories.append(fit(learner, validation_data=(X, Y)))
        assert learner.model.loss is None  # what was lent is back
    assert histories[0].keys() == histories[1].keys()
    for name, value in histories[1].items():
        np.testing.assert_allclose(
            histories[0][name], value, rtol=1e-4, atol=1e-6
        )
