"""The prior of the strengths, weighed against the outer data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import make_data

import keras_hposgld as hs
from keras_hposgld.training.hyperprior import Hyperprior
from keras_hposgld.training.hyperprior import loss_unit
from keras_hposgld.training.hyperprior import SharesSeen


def make_model(shrinkage, kind=hs.regularizers.LearnableWeightDecay, **more):
    keras.utils.set_random_seed(2)
    strength = kind(
        0.1,
        granularity="input",
        shrinkage=shrinkage,
        max_value=10.0,
        **more,
    )
    layer = keras.layers.Dense(1, kernel_regularizer=strength)
    return keras.Sequential([keras.Input((6,)), layer])


def learn(model, way, outer_data=None, epochs=4, **arguments):
    """Fits a model; returns the learned strengths."""
    x, y = make_data()
    outer_data = outer_data or make_data(40, seed=1)
    hyper_optimizer = keras.optimizers.SGD(1.0)
    if way == "learner":
        learner = hs.BilevelModel(model, seed=5)
        learner.compile(
            optimizer=hs.SGLD(0.05),
            loss="mse",
            hypergradient=hs.estimators.HPOSGLD(2, 3),
            hyper_optimizer=hyper_optimizer,
        )
        learner.fit(
            x, y, outer_data=outer_data, epochs=epochs, verbose=0, **arguments
        )
        (value,) = learner.hyperparameter_values().values()
        return value
    optimizer = keras.optimizers.SGD(0.05)
    model.compile(optimizer, loss="mse", **arguments)
    callback = hs.callbacks.LearnHyperparameters(
        outer_data,
        hyper_optimizer=hyper_optimizer,
        chain=way,
        estimator=hs.estimators.HPOSGLD(0, 3),
        every=3,
        seed=1,
    )
    model.fit(x, y, epochs=epochs, callbacks=[callback], verbose=0)
    (value,) = callback.hyperparameter_values().values()
    return value


def spread(value):
    logs = np.log(value)
    return np.abs(logs - logs.mean()).max()


@pytest.mark.parametrize(
    "way", ["training", pytest.param("learner", marks=pytest.mark.slow)]
)
def test_prior_pulls_strengths_together(way):
    free, held, same = (
        learn(make_model(shrinkage), way) for shrinkage in (0.0, 1e-2, 10.0)
    )
    assert spread(free) > 0.01
    assert spread(held) == pytest.approx(spread(free), rel=0.01)
    assert spread(same) < 0.5 * spread(free)
    # It says nothing about where all of them are.
    assert np.log(same).mean() == pytest.approx(np.log(free).mean(), abs=1e-4)


def test_prior_counts_as_one_example_of_those_there_are():
    """The first step of plain descent on the hyperparameters, by hand."""
    n, shrinkage, rate = 40, 0.7, 0.05
    hypers = {}
    for name, number in (("none", 0.0), ("some", shrinkage)):
        model = make_model(number)
        rng = np.random.default_rng(0)
        hs.find_hyperparameters(model)[0].hyperparameter_variables[0].assign(
            rng.normal(-3.0, 1.0, 6)
        )
        before = hs.find_hyperparameters(model)[0].hyperparameter_values()
        model.compile(keras.optimizers.SGD(rate), loss="mse")
        callback = hs.callbacks.LearnHyperparameters(
            make_data(n, seed=1),
            batch_size=n,
            hyper_optimizer=keras.optimizers.SGD(1.0),
            estimator=hs.estimators.HPOSGLD(0, 3),
            seed=1,
        )
        x, y = make_data()
        history = model.fit(
            x, y, batch_size=32, callbacks=[callback], verbose=0
        )
        (variable,) = callback.hyperparameters
        hypers[name] = variable.numpy()
        outer_loss = history.history["outer_loss"][0]
    strengths = np.asarray(next(iter(before.values())), "float64")
    signs = np.sign(np.log(strengths) - np.log(strengths).mean())
    pull = signs * rate * strengths * 2.0  # of 1, 2 and 3 steps, the mean
    pull = (pull - pull.mean()) * (1 - strengths / 10.0)
    expected = -shrinkage * 2 * outer_loss / n * pull
    np.testing.assert_allclose(
        hypers["some"] - hypers["none"], expected, atol=3e-7
    )


def test_share_of_a_penalty_follows_the_optimizers_step():
    """By Adam's step the pull of a penalty is rescaled, and so is the prior."""
    model = make_model(1.0, hs.regularizers.LearnableL2)
    (owner,) = hs.find_hyperparameters(model)
    optimizer = keras.optimizers.Adam(0.01, beta_1=0.8)
    model.compile(optimizer, loss="mse")
    x, y = make_data()
    model.fit(x, y, verbose=0)
    weight = model.layers[0].kernel
    sampler = hs.samplers.from_optimizer(optimizer)
    # Not in the model's order, in which the kernel comes first.
    weights = model.trainable_variables[::-1]
    state = {
        name: [v.value for v in slots][::-1]
        for name, slots in sampler.state_variables.items()
    }
    last, estimator = 2, hs.estimators.HPOSGLD(0, 3)
    shares = SharesSeen(weights, estimator, sampler, state, last)
    curvature = tf.reshape(tf.range(1.0, 7.0), (6, 1))
    place = [v is weight for v in model.trainable_variables].index(True)
    velocity = optimizer._velocities[place].numpy() / (1 - 0.999**3)
    step = 0.01 / (np.sqrt(velocity) + 1e-7) / (1 - 0.8**3)
    grown = np.mean(np.cumsum(1 - 0.8 ** np.arange(1, 4)))
    np.testing.assert_allclose(
        shares(weight, curvature, False), step * curvature * grown, rtol=1e-4
    )
    np.testing.assert_allclose(
        shares(weight, curvature, True), 0.01 * curvature * 2.0, rtol=1e-5
    )
    frozen = keras.Variable(np.zeros((6, 1)))
    assert not np.any(shares(frozen, curvature, False))


@pytest.mark.parametrize(
    "loss, factor",
    [
        ("mse", 2.0),
        (keras.losses.MeanSquaredError(), 2.0),
        ("mae", 1.0),
        (["mse", keras.losses.MeanSquaredError()], 2.0),
        ({"a": "mse", "b": None}, 2.0),
    ],
)
def test_errors_are_measured_by_their_noise(loss, factor):
    unit = loss_unit(loss, tf.constant(0.3))
    assert float(unit) == pytest.approx(factor * 0.3)


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.BinaryCrossentropy(),
        ["mse", "mae"],
        lambda y, p: keras.ops.mean((y - p) ** 4),
    ],
)
def test_other_losses_count_as_log_likelihoods(loss):
    assert float(loss_unit(loss, tf.constant(0.3))) == 1.0


def dataset_of(data):
    return tf.data.Dataset.from_tensor_slices(data).batch(8)


@pytest.mark.parametrize(
    "way",
    [
        "training",
        pytest.param("apart", marks=pytest.mark.slow),
        pytest.param("learner", marks=pytest.mark.slow),
    ],
)
def test_number_of_examples_is_read_off_the_data(way, monkeypatch):
    read = Hyperprior.read
    numbers = []

    def spy(self, *arguments):
        result = read(self, *arguments)
        numbers.append(float(self.num_examples()))
        return result

    monkeypatch.setattr(Hyperprior, "read", spy)
    data = make_data(40, seed=1)
    unknown = dataset_of(data).filter(lambda x, y: True)
    for given in (data, dataset_of(data), unknown):
        model = make_model(1.0, hs.regularizers.LearnableL2)
        learn(model, way, given, epochs=2)
    assert set(numbers) == {40.0}


def test_data_without_an_end_count_what_was_drawn():
    data = dataset_of(make_data(40, seed=1)).repeat()
    with pytest.warns(UserWarning, match="`outer_data` never ends"):
        value = learn(make_model(1.0), "training", data)
    assert np.all(np.isfinite(value))


def test_second_fit_on_more_data_weighs_the_prior_anew():
    model = make_model(1.0, hs.regularizers.LearnableL2)
    learner = hs.BilevelModel(model, seed=5)
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, 1),
    )
    x, y = make_data()
    for n in (40, 80):
        learner.fit(x, y, outer_data=make_data(n, seed=1), verbose=0)
        assert learner.outer_level.hyperprior.num_examples() == n
        if n == 40:
            function = learner.train_function
    assert learner.train_function is not function


def test_tasks_are_no_examples():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    strength = hs.regularizers.LearnableL2(0.1, granularity="auto")
    model.layers[0].kernel.regularizer = strength
    meta = hs.MetaModel(model)
    with pytest.raises(ValueError, match="`shrinkage` must be 0"):
        meta.compile(optimizer=hs.SGLD(0.05), loss="mse")
