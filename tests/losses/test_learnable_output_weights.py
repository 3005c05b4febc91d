"""Learned weights of several outputs, against closed forms and Keras's own."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import keras_hypergradient

import keras_hposgld as hs
from keras_hposgld.training import keras_problem

L = keras.layers
LOSSES = {"main": "mse", "color": "mae", "noise": "mse"}
WEIGHTS = {"main": 2.0, "color": 0.3, "noise": 1.7}
JUDGE = {"main": "mse"}
as_dict = pytest.mark.parametrize(
    "as_dict", [True, pytest.param(False, marks=pytest.mark.slow)]
)


def make_data(n=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    noise = rng.normal(size=(n, 2)).astype("float32")
    return x, {"main": x[:, :1] - x[:, 1:2], "color": x[:, 2:3], "noise": noise}


def make_model(as_dict=True, activation="tanh"):
    keras.utils.set_random_seed(2)
    inputs = keras.Input((4,))
    hidden = L.Dense(5, activation)(inputs)
    outputs = {
        name: L.Dense(2 if name == "noise" else 1, name=name)(hidden)
        for name in LOSSES
    }
    return keras.Model(inputs, outputs if as_dict else [*outputs.values()])


def make_loss(losses=None, **arguments):
    defaults = dict(initial_value=WEIGHTS, max_value=5.0, fixed="main")
    return hs.losses.LearnableOutputWeights(
        losses or LOSSES, **(defaults | arguments)
    )


def make_learner(as_dict=True, loss=None, **arguments):
    defaults = dict(
        optimizer=hs.SGLD(0.05, seed=3),
        outer_loss=JUDGE,
        hypergradient=hs.estimators.HPOSGLD(1, 2),
    )
    learner = hs.BilevelModel(make_model(as_dict), seed=1)
    loss = make_loss() if loss is None else loss
    learner.compile(loss=loss, **(defaults | arguments))
    return learner


def fit(learner, **arguments):
    defaults = dict(
        outer_data=make_data(12, seed=1), batch_size=4, epochs=2, verbose=0
    )
    return learner.fit(*make_data(), **(defaults | arguments))


# What it computes.


@pytest.mark.parametrize("as_dict", [True, False])
def test_weights_are_keras_s_loss_weights(as_dict):
    # Beside `loss_weights`, with sample weights for each output.
    x, y = make_data()
    rng = np.random.default_rng(1)
    more = {"main": 0.5, "color": 2.0, "noise": 3.0}
    sample_weight = {name: rng.uniform(size=24) for name in LOSSES}
    if not as_dict:  # Keras wants targets and sample weights alike
        y, sample_weight = [*y.values()], [*sample_weight.values()]
    evaluated = []
    for loss, loss_weights in (
        (make_loss(), more),
        (LOSSES, {name: more[name] * WEIGHTS[name] for name in LOSSES}),
    ):
        model = make_model(as_dict)
        model.compile("sgd", loss=loss, loss_weights=loss_weights)
        evaluated.append(
            model.evaluate(x, y, 7, 0, sample_weight, return_dict=True)
        )
    ours, plain = evaluated
    # Keras weights what it logs of the outputs by nothing; here they include
    # the learned weights. Means over batches, in float32.
    np.testing.assert_allclose(ours["loss"], plain["loss"], rtol=1e-5)
    for name, weight in WEIGHTS.items():
        np.testing.assert_allclose(
            ours[f"{name}_loss"], weight * plain[f"{name}_loss"], rtol=1e-5
        )


def test_masks_and_reductions_are_those_of_the_loss():
    inputs = keras.Input((3, 1))
    masked = L.Masking(9.0)(inputs)
    model = keras.Model(
        inputs,
        {name: L.Dense(1, name=name)(masked) for name in ("main", "color")},
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 8, 3, 1)).astype("float32")
    x[:, 2] = np.where(rng.random((8, 1)) < 0.5, 9.0, x[:, 2])
    losses = {"main": keras.losses.MeanSquaredError("sum"), "color": "mae"}
    found = []
    for loss, weights in (
        (make_loss(losses, initial_value=0.4), None),
        (losses, {"main": 0.4, "color": 0.4}),
    ):
        model.compile("sgd", loss=loss, loss_weights=weights)
        y_all = {"main": y, "color": 2 * y}
        found.append(model.evaluate(x, y_all, verbose=0, return_dict=True))
    assert (x == 9.0).any()
    np.testing.assert_allclose(found[0]["loss"], found[1]["loss"], rtol=1e-6)


def test_functions_take_targets_without_the_last_axis():
    def error(y, y_pred):
        return tf.reduce_mean((y - y_pred) ** 2, axis=-1)

    loss = hs.losses.LearnableOutputWeight(error, 0.5)
    y, y_pred = np.arange(3.0), np.array([[1.0], [1.0], [5.0]])
    for targets in (y, y[:, None]):
        np.testing.assert_allclose(loss(targets, y_pred), 0.5 * 10 / 3)


# What it learns.


class SharedWeight:
    """Two outputs that are one weight w: its optimum is a weighted mean.

    With the targets a and b, and the weight s of the second loss, it is
    w* = (a + s b) / (1 + s), where the outer loss is (w* - c)^2. The best s is
    (c - a) / (b - c).
    """

    a, b, c = 1.0, 3.0, 1.4

    def __init__(self):
        inputs = keras.Input((1,))
        weight = L.Dense(1, use_bias=False)(inputs)
        self.model = keras.Model(
            inputs,
            {
                name: L.Activation("linear", name=name)(weight)
                for name in ("main", "aux")
            },
        )
        self.loss = hs.losses.LearnableOutputWeights(
            {"main": "mse", "aux": "mse"}, {"aux": 0.9}, 4.0, fixed="main"
        )

    @staticmethod
    def batch(main, aux):
        ones = np.ones((4, 1))
        return ones, {"main": main * ones, "aux": aux * ones}

    def hypergradient(self):
        """By the unconstrained variable u, with s = 4 sigmoid(u)."""
        s = self.loss.weights["aux"]
        optimum = (self.a + s * self.b) / (1 + s)
        by_weight = 2 * (optimum - self.c) * (self.b - self.a) / (1 + s) ** 2
        return by_weight * s * (1 - s / 4.0)


def test_hypergradient_is_that_of_the_weighted_mean(float64, run):
    # Weight and adjoint converge at the rate 1 - 0.5 (1 + s) = 0.05 per step,
    # so that 15 steps leave nothing.
    case, sampler = SharedWeight(), hs.SGLD(0.25)
    learner = hs.BilevelModel(case.model, seed=0)
    learner.compile(optimizer=hs.SGLD(0.1), loss=case.loss, outer_loss=JUDGE)
    inner, outer = case.batch(case.a, case.b), case.batch(case.c, 7.0)
    keras_problem.build_on(learner, inner)
    problem = keras_problem.KerasProblem(
        learner,
        learner.hyperparameters,
        [],
        learner.outer_level.loss(learner),
        tracks_metrics=False,
    )

    (found,) = run(
        *keras_hypergradient(
            problem,
            inner,
            outer,
            estimator=hs.estimators.AdjointSGLD(15, 1),
            sampler=sampler,
        )
    )
    np.testing.assert_allclose(found, case.hypergradient(), rtol=1e-10)


def test_weight_is_learned_that_puts_the_optimum_where_it_is_to_be(float64):
    case = SharedWeight()
    learner = hs.BilevelModel(case.model, seed=0)
    learner.compile(
        optimizer=hs.SGLD(0.1),
        loss=case.loss,
        outer_loss={"main": "mse", "aux": None},
        hypergradient=hs.estimators.AdjointSGLD(5, 5),
        hyper_optimizer=keras.optimizers.SGD(3.0),
    )
    learner.fit(
        *case.batch(case.a, case.b),
        outer_data=case.batch(case.c, 7.0),
        steps_per_epoch=10 * 100,
        verbose=0,
    )
    best = (case.c - case.a) / (case.b - case.c)
    np.testing.assert_allclose(case.loss.weights["aux"], best, rtol=1e-6)
    assert case.loss.weights["main"] == 1.0


@as_dict
def test_hypergradient_is_the_difference_quotient(float64, as_dict, rng):
    # Reverse mode through three steps of a linear network whose first layer
    # the outputs share, and the same steps with the weights moved a little.
    loss = make_loss()
    learner = hs.BilevelModel(make_model(as_dict, activation=None), seed=1)
    learner.compile(optimizer=hs.SGLD(0.1), loss=loss, outer_loss=JUDGE)
    data, outer = make_data(), make_data(12, seed=1)
    keras_problem.build_on(learner, data)
    problem = keras_problem.KerasProblem(
        learner,
        learner.hyperparameters,
        [],
        learner.outer_level.loss(learner),
        tracks_metrics=False,
    )
    start = keras_problem.tensors(problem.hyperparameters)
    weights, sampler = keras_problem.tensors(problem.weights), hs.SGLD(0.1)

    @tf.function
    def estimate(values):
        return hs.hypergradient(
            hs.BilevelProblem(
                lambda h, p, b: problem.inner(h, p, data, ([], []))[0],
                lambda h, p, b: problem.outer(h, p, outer, ([], [])),
            ),
            values,
            weights,
            estimator=hs.estimators.RMD(num_steps=3),
            sampler=sampler,
        )

    found = estimate(start).hypergradient
    for number in range(len(start)):
        step = [1e-5 * (n == number) for n in range(len(start))]
        up, down = (
            estimate([v + sign * d for v, d in zip(start, step, strict=True)])
            for sign in (1, -1)
        )
        quotient = (up.outer_loss - down.outer_loss) / 2e-5
        assert abs(quotient) > 1e-4
        np.testing.assert_allclose(found[number], quotient, rtol=1e-6)


# How it is kept.


@as_dict
def test_training_goes_on_from_a_file(tmp_path, as_dict):
    learner = make_learner(as_dict, metrics={"main": ["mae"]})
    history = fit(learner).history
    logs = {f"{name}_loss" for name in LOSSES}
    assert logs | {"main_mae", "outer_loss"} <= history.keys()
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    again = hs.losses.LearnableOutputWeights(loaded.loss)
    assert again.weights == learner.loss.weights != WEIGHTS
    assert again.weights["main"] == WEIGHTS["main"]
    for trained in (learner, loaded):
        fit(trained)
    assert again.weights == learner.loss.weights
    for a, b in zip(learner.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_plain_model_keeps_what_was_learned(tmp_path):
    loss, model = make_loss(), make_model()
    loss["color"].variable.assign(0.7)
    model.compile("sgd", loss=loss)
    expected = model.evaluate(*make_data(), verbose=0, return_dict=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert hs.losses.LearnableOutputWeights(loaded.loss).weights == loss.weights
    found = loaded.evaluate(*make_data(), verbose=0, return_dict=True)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_weights_are_shown_copied_and_held_in_a_refit():
    learner, other = make_learner(), make_learner()
    fit(learner)
    learned = learner.loss.weights
    lines = []
    learner.hyperparameter_summary(print_fn=lines.append)
    assert any("color/output_weight  output loss" in line for line in lines)
    assert lines[-1] == "2 hyperparameters"
    hs.copy_hyperparameters(learner, other)
    assert other.loss.weights == learned
    fit(learner, epochs=1, refit=True)
    assert learner.loss.weights != learned
    learned = learner.loss.weights
    learner.refit(*make_data(), optimizer="sgd", verbose=0)
    assert learner.loss.weights == learned
    # As constants of Keras, in a model that needs nothing of ours.
    plain = learner.export()
    plain.compile("sgd", loss=learner.loss.losses, loss_weights=learned)
    np.testing.assert_allclose(
        plain.evaluate(*make_data(), verbose=0, return_dict=True)["loss"],
        learner.evaluate(*make_data(), verbose=0, return_dict=True)["loss"],
        rtol=1e-6,
    )


@pytest.mark.slow
def test_learned_loss_of_an_output_is_learned_as_well(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 4)).astype("float32")
    y = {"main": x[:, :3].argmax(1), "aux": x[:, :3].argmin(1)}
    inputs = keras.Input((4,))
    hidden = L.Dense(5, "tanh")(inputs)
    model = keras.Model(
        inputs, {name: L.Dense(3, name=name)(hidden) for name in y}
    )
    smoothing = {
        name: hs.losses.LearnableLabelSmoothing(0.2, from_logits=True)
        for name in y
    }
    loss = hs.losses.LearnableOutputWeights(smoothing, fixed="main")
    judge = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(
        optimizer=hs.SGLD(0.1, seed=0), loss=loss, outer_loss={"main": judge}
    )
    assert len(learner.hyperparameters) == 3
    before = learner.hyperparameter_values()
    learner.fit(x, y, outer_split=0.3, epochs=2, batch_size=4, verbose=0)
    after = learner.hyperparameter_values()
    assert all(after[path] != before[path] for path in before)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    values = loaded.hyperparameter_values().values()
    np.testing.assert_array_equal([*values], [*after.values()])


@pytest.mark.parametrize(
    "chain", ["training", pytest.param("apart", marks=pytest.mark.slow)]
)
def test_callback_learns_them_in_a_plain_fit(chain):
    loss, model = make_loss(), make_model()
    model.compile("adam", loss=loss)
    start = loss.weights
    model.fit(*make_data(), batch_size=4, verbose=0)
    assert loss.weights == start
    callback = hs.callbacks.LearnHyperparameters(
        make_data(12, seed=1),
        estimator=hs.estimators.HPOSGLD(1, 1),
        every=2,
        batch_size=4,
        outer_loss=JUDGE,
        chain=chain,
        seed=0,
    )
    model.fit(*make_data(), batch_size=4, callbacks=[callback], verbose=0)
    assert loss.weights["main"] == start["main"]
    assert all(
        abs(loss.weights[name] - start[name]) > 1e-3
        for name in ("color", "noise")
    )


@pytest.mark.slow
def test_two_replicas_learn_what_one_does(mirrored):
    learned = []
    for strategy in (None, mirrored):
        scope = strategy.scope() if strategy else contextlib.nullcontext()
        with scope:
            # Not Adam: that would hide a factor.
            learner = make_learner(
                hyper_optimizer=keras.optimizers.SGD(1.0), loss_weights=None
            )
        fit(learner, batch_size=8)
        learned.append(list(learner.loss.weights.values()))
    assert np.abs(np.subtract(learned[0], list(WEIGHTS.values()))).max() > 1e-3
    np.testing.assert_allclose(*learned, rtol=1e-5)


# What it refuses.


def test_what_cannot_work_is_refused():
    smoothing = hs.losses.LearnableLabelSmoothing(0.2)
    for make, message in (
        (
            lambda: make_loss({"main": "mse", "color": None}, initial_value=1),
            "two outputs at least",
        ),
        (lambda: make_loss(fixed="colour"), "`fixed` must name outputs"),
        (lambda: make_loss(fixed=list(LOSSES)), "`fixed` must leave a weight"),
        (
            lambda: make_loss(initial_value={"colour": 1.0}),
            "`initial_value` must name outputs",
        ),
        (lambda: make_loss(initial_value=5.0), "`initial_value` must lie"),
        (lambda: make_loss(initial_value={"main": -1.0}), "`initial_value`"),
        (lambda: make_loss(max_value=0.0), "`max_value` must be"),
        (
            lambda: make_loss(LOSSES | {"main": smoothing}),
            "`initial_value` must be 1",
        ),
    ):
        with pytest.raises(ValueError, match=f"{message}[^$]*Received"):
            make()
    with pytest.raises(TypeError, match="`losses` must be a dictionary"):
        hs.losses.LearnableOutputWeights(["mse", "mse"])
    with pytest.raises(ValueError, match="`outer_loss` must be given"):
        make_learner(outer_loss=None)
    # Nothing of it is a prior or a likelihood.
    learner = hs.BilevelModel(make_model())
    with pytest.raises(ValueError, match="(?s)Evidence.*of 'color'"):
        learner.compile(loss=make_loss(), hypergradient="evidence")


@as_dict
def test_losses_of_unknown_outputs_are_refused(as_dict):
    # By Keras, which says which there are.
    loss = make_loss({"main": "mse", "colour": "mse"}, initial_value=1.0)
    learner = make_learner(as_dict, loss)
    with pytest.raises((KeyError, ValueError), match="colour"):
        fit(learner)
