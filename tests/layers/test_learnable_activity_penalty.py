"""Learned penalties of activities, against Keras's and a closed form."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import keras_hypergradient

import keras_hposgld as hs
from keras_hposgld.training import keras_problem

L = keras.layers
NORMS = {"l1": np.abs, "l2": np.square}
each_norm = pytest.mark.parametrize("norm", NORMS)


def make_penalty(norm="l2", strength=0.7):
    return hs.layers.LearnableActivityPenalty(strength, 3.0, norm)


def make_data(n=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    return x, (x[:, :2] + 0.3 * rng.normal(size=(n, 2))).astype("float32")


def make_model(norm="l2", strength=0.7):
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(5, "tanh"),
            make_penalty(norm, strength),
            L.Dense(2),
        ]
    )


@each_norm
def test_it_is_keras_s(norm):
    # In batches of one, lest it matter whether Keras divides by their size.
    x, y = make_data()
    model = make_model(norm)
    model.compile("sgd", "mse")
    found = model.evaluate(x, y, batch_size=24, verbose=0)
    plain = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(
                5,
                "tanh",
                activity_regularizer=keras.regularizers.L1L2(**{norm: 0.7}),
            ),
            L.Dense(2),
        ]
    )
    plain.set_weights([w for w in model.get_weights() if w.ndim])
    plain.compile("sgd", "mse")
    expected = plain.evaluate(x, y, batch_size=1, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@each_norm
def test_steps_that_are_masked_do_not_count(norm):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 2)).astype("float32")
    mask = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    penalty = make_penalty(norm)
    np.testing.assert_array_equal(penalty(x, mask=tf.constant(mask)), x)
    expected = 0.7 * NORMS[norm](x[mask]).sum() / len(x)
    np.testing.assert_allclose(penalty.losses[0], expected, rtol=1e-6)
    penalty(x, mask=tf.constant(mask & False))
    assert float(penalty.losses[0]) == 0.0


def linear_case():
    """One weight w with output w: loss (w - 1)^2 + s w^2, w* = 1 / (1 + s)."""
    penalty = make_penalty("l2", 0.8)
    model = keras.Sequential(
        [keras.Input((1,)), L.Dense(1, use_bias=False), penalty]
    )
    learner = hs.BilevelModel(model, seed=0)
    return penalty, learner


def ones(value):
    return np.ones((4, 1)), np.full((4, 1), value)


@pytest.mark.parametrize("layer_state", ["carried", "frozen"])
def test_hypergradient_is_that_of_the_shrunken_mean(float64, run, layer_state):
    # The outer loss (w* - c)^2 has no part of the penalty. Weight and adjoint
    # converge at the rate 1 - 0.5 (1 + s) = 0.1, so 15 steps leave 1e-15.
    penalty, learner = linear_case()
    sampler, c = hs.SGLD(0.25), 0.4
    learner.compile(optimizer=sampler, loss="mse", layer_state=layer_state)
    keras_problem.build_on(learner, ones(1.0))
    problem = keras_problem.KerasProblem(
        learner,
        learner.hyperparameters,
        [],
        learner.outer_level.loss(learner),
        layer_state,
        tracks_metrics=False,
    )

    (found,) = run(
        *keras_hypergradient(
            problem,
            ones(1.0),
            ones(c),
            estimator=hs.estimators.AdjointSGLD(15, 1),
            sampler=sampler,
        )
    )
    s = float(penalty.value())
    by_strength = -2 * (1 / (1 + s) - c) / (1 + s) ** 2
    by_variable = by_strength * s * (1 - s / 3.0)
    np.testing.assert_allclose(found, by_variable, rtol=1e-10)


def test_strength_is_learned_that_shrinks_as_is_to_be(float64):
    penalty, learner = linear_case()
    learner.compile(
        optimizer=hs.SGLD(0.1),
        loss="mse",
        hypergradient=hs.estimators.AdjointSGLD(5, 5),
        hyper_optimizer=keras.optimizers.SGD(5.0),
    )
    learner.fit(
        *ones(1.0),
        outer_data=ones(0.4),
        steps_per_epoch=10 * 100,
        verbose=0,
    )
    np.testing.assert_allclose(penalty.value(), 1 / 0.4 - 1, rtol=1e-6)


def test_outer_loss_that_layers_add_is_without_it():
    # Else the strength would go to zero.
    class Add(L.Layer):
        def call(self, x):
            self.add_loss(tf.reduce_mean((x - 2.0) ** 2))
            return x

    model = keras.Sequential(
        [keras.Input((1,)), L.Dense(1), make_penalty(), Add()]
    )
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(optimizer=hs.SGLD(0.05, seed=0))
    x = np.random.default_rng(0).normal(size=(12, 1))
    learner.fit(x, outer_split=0.3, verbose=0)
    logs = learner.evaluate(x, verbose=0, return_dict=True)
    added = np.mean((learner.predict(x, verbose=0) - 2.0) ** 2)
    np.testing.assert_allclose(logs["outer_loss"], added, rtol=1e-5)
    assert logs["loss"] > 1.01 * added


def test_two_replicas_learn_what_one_does(mirrored):
    learned = []
    for strategy in (None, mirrored):
        scope = strategy.scope() if strategy else contextlib.nullcontext()
        with scope:
            learner = hs.BilevelModel(make_model(), seed=0)
            learner.compile(
                optimizer=hs.SGLD(0.05, seed=0),
                loss="mse",
                hypergradient=hs.estimators.HPOSGLD(1, 2),
                # Not Adam: that would hide a factor.
                hyper_optimizer=keras.optimizers.SGD(50.0),
            )
        learner.fit(
            *make_data(),
            outer_data=make_data(12, seed=1),
            batch_size=8,
            epochs=4,
            verbose=0,
        )
        (value,) = learner.hyperparameter_values().values()
        learned.append(float(value))
    assert abs(learned[0] - 0.7) > 1e-1
    np.testing.assert_allclose(*learned, rtol=1e-5)


@pytest.mark.parametrize(
    "chain", ["training", pytest.param("apart", marks=pytest.mark.slow)]
)
def test_callback_learns_it_in_a_plain_fit(chain):
    model, data = make_model(), make_data()
    model.compile("adam", "mse")
    callback = hs.callbacks.LearnHyperparameters(
        make_data(12, seed=1),
        estimator=hs.estimators.HPOSGLD(1, 1),
        every=2,
        batch_size=4,
        chain=chain,
        seed=0,
    )
    model.fit(*data, batch_size=4, epochs=2, callbacks=[callback], verbose=0)
    (value,) = callback.hyperparameter_values().values()
    assert abs(value - 0.7) > 1e-2


def test_what_cannot_work_is_refused():
    for arguments, name in (
        ({"norm": "l3"}, "norm"),
        ({"initial_value": 0.0}, "initial_value"),
        ({"initial_value": 2.0, "max_value": 1.0}, "initial_value"),
        ({"max_value": -1.0}, "max_value"),
    ):
        with pytest.raises(ValueError, match=f"`{name}`.*Received"):
            hs.layers.LearnableActivityPenalty(**arguments)
    # Nothing of it is a prior of weights.
    learner = hs.BilevelModel(make_model())
    with pytest.raises(ValueError, match="Evidence.*a prior.*Received"):
        learner.compile(
            loss=hs.losses.LearnableGaussianLoss(), hypergradient="evidence"
        )
