"""The skeletons of CONTRIBUTING.md work, and stand there word for word."""

import importlib.util
import pathlib
import re

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.estimators.registry import REGISTRY as ESTIMATORS
from keras_hposgld.hyperparameters.registry import REGISTRY as KINDS
from keras_hposgld.samplers.registry import REGISTRY as SAMPLERS

FOLDER = pathlib.Path(__file__).parent
GUIDE = FOLDER.parents[1] / "CONTRIBUTING.md"
PAGE = FOLDER.parents[1] / "docs" / "own_hyperparameter.md"


def load(name):
    path = FOLDER / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def registries_of_their_own(monkeypatch):
    # The contract tests over all members must not meet a skeleton.
    for registry in (ESTIMATORS, SAMPLERS, KINDS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))


@pytest.mark.parametrize(
    "name",
    ["sampler_skeleton", "estimator_skeleton", "hyperparameter_skeleton"],
)
def test_guide_holds_the_skeleton(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert f"```python\n{text}```" in GUIDE.read_text()


def test_page_holds_the_temperature():
    text = (FOLDER / "temperature.py").read_text()
    assert f"```python\n{text}```" in PAGE.read_text()
    code = [line for line in text.splitlines() if line.strip()]
    assert len(code) <= 30


def two_weights(decay=None):
    return hs.BilevelProblem(
        lambda h, w, b: (w[0] - 1) ** 2 + h * w[0] ** 2 + (w[1] - w[0]) ** 4,
        lambda h, w, b: (w[0] - 0.5) ** 2 + w[1] ** 2 + 0.1 * h**2,
        decay=decay,
    )


def solve(problem, strength, estimator, sampler):
    start = [tf.constant(value, tf.float64) for value in (0.3, -0.7)]
    return hs.hypergradient(
        problem,
        tf.constant(strength, tf.float64),
        start,
        estimator=estimator,
        sampler=sampler,
    )


@pytest.mark.parametrize("decay", [None, lambda h, w: [0.5 * h * w[0], None]])
def test_chain_of_the_new_sampler_is_differentiated(decay):
    sampler = load("sampler_skeleton").ScaledDescent(0.1, scales=[1.0, 0.3])
    problem, step = two_weights(decay), 1e-5
    up, down = (
        solve(problem, 0.4 + sign * step, "rmd", sampler).outer_loss
        for sign in (1, -1)
    )
    for alias in ("rmd", "fmd"):
        found = solve(problem, 0.4, alias, sampler).hypergradient
        np.testing.assert_allclose(found, (up - down) / (2 * step), rtol=1e-8)


def test_step_has_the_scale_of_each_weight():
    sampler = load("sampler_skeleton").ScaledDescent(0.1, scales=[1.0, 0.3])
    params = [tf.constant(2.0, tf.float64), tf.constant([1.0], tf.float64)]
    decay = [None, tf.constant([5.0], tf.float64)]
    moved, _ = sampler.step(params, params, decay, {}, 0, None)
    np.testing.assert_allclose(moved[0], 2.0 - 0.1 * 2.0, rtol=1e-15)
    np.testing.assert_allclose(moved[1], [1.0 - 0.03 - 0.5], rtol=1e-15)


def test_adjoint_with_the_new_sampler_is_the_implicit_derivative(rng):
    ridge = problems.Ridge(rng)
    sampler = load("sampler_skeleton").ScaledDescent(0.1, scales=[0.5])
    estimate = tf.function(
        lambda: hs.hypergradient(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator=hs.estimators.AdjointSGLD(1500, 2),
            sampler=sampler,
        ),
        autograph=False,
    )()
    np.testing.assert_allclose(
        estimate.hypergradient,
        ridge.exact_hypergradient(ridge.strengths),
        rtol=1e-6,
    )


def test_registered_sampler_is_found_checked_and_rebuilt():
    kind = load("sampler_skeleton").ScaledDescent
    assert isinstance(hs.samplers.get("scaled_descent"), kind)
    sampler = kind(0.2, scales=[1.0, 2.0])
    copy = hs.samplers.deserialize(hs.samplers.serialize(sampler))
    assert copy.get_config() == sampler.get_config()
    with pytest.raises(ValueError, match="`scales` must be above 0"):
        kind(0.1, scales=[1.0, 0.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: hs.SGLD(0.1, temperature=0.1),
        lambda: keras.optimizers.SGD(0.1, momentum=0.8, nesterov=True),
        lambda: keras.optimizers.Adam(0.1, weight_decay=0.2),
    ],
)
def test_one_sample_of_the_new_estimator_is_the_last_step(make):
    sampler = make()
    problem = two_weights(lambda h, w: [h * w[0], 0.1 * h * w[1]])
    kind = load("estimator_skeleton").LookBack
    estimate = solve(problem, 0.4, kind(6, 1), sampler)
    reference = solve(problem, 0.4, hs.estimators.RMDFO(7), sampler)
    np.testing.assert_allclose(
        estimate.hypergradient, reference.hypergradient, rtol=1e-12
    )


def test_new_estimator_averages_over_its_samples():
    kind, sampler = load("estimator_skeleton").LookBack, hs.SGLD(0.1)
    problem = two_weights()
    samples = [
        solve(problem, 0.4, kind(burn_in, 1), sampler).hypergradient
        for burn_in in (3, 4, 5)
    ]
    estimate = solve(problem, 0.4, kind(3, 3), sampler)
    np.testing.assert_allclose(
        estimate.hypergradient, np.mean(samples), rtol=1e-12
    )
    assert float(estimate.standard_error) > 0


def test_registered_estimator_is_found_and_rebuilt():
    kind = load("estimator_skeleton").LookBack
    assert isinstance(hs.estimators.get("look_back"), kind)
    estimator = kind(2, 5)
    copy = hs.estimators.deserialize(hs.estimators.serialize(estimator))
    assert copy.get_config() == estimator.get_config()
    moving = hs.BilevelProblem(
        lambda h, w, b: (w - 1.0) ** 2, lambda h, w, b: w**2, lambda h: h
    )
    with pytest.raises(ValueError, match="cannot serve a problem with"):
        hs.hypergradient(moving, 0.1, estimator=kind(), sampler=hs.SGLD(0.1))


def test_new_hyperparameter_is_learned_saved_and_exported(tmp_path, rng):
    kind = load("hyperparameter_skeleton").LearnedNoise
    x = rng.normal(size=(24, 4))
    y = x[:, :1] + 0.1 * rng.normal(size=(24, 1))
    noise = kind(0.5, max_value=2.0)
    model = keras.Sequential([keras.Input((4,)), noise, keras.layers.Dense(1)])
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(
        optimizer=hs.SGLD(0.05, seed=0),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(5, 5),
    )
    arguments = dict(outer_data=(x[16:], y[16:]), batch_size=8, verbose=0)
    learner.fit(x[:16], y[:16], epochs=20, **arguments)
    (value,) = learner.hyperparameter_values().values()
    assert 0.0 < value < 0.45  # noise does not help a line
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.hyperparameter_values().popitem()[1] == value
    for trained in (learner, loaded):
        trained.fit(x[:16], y[:16], epochs=2, **arguments)
    (a,), (b,) = (
        trained.hyperparameter_values().values()
        for trained in (learner, loaded)
    )
    assert a == b != value
    exported = learner.export()
    assert isinstance(exported.layers[0], keras.layers.GaussianNoise)
    assert exported.layers[0].stddev == a
    np.testing.assert_allclose(exported(x), learner(x), rtol=1e-6)


def test_temperature_is_the_best_one_on_the_outer_data(tmp_path, rng):
    # The weights stand still, so that the law of T is one number's: Newton's
    # method on the cross-entropy of logits / T, in NumPy.
    kind = load("temperature").LearnedTemperature
    x = rng.normal(size=(80, 4)).astype("float32")
    y = np.where(
        rng.random(80) < 0.4, rng.integers(0, 3, 80), x[:, :3].argmax(1)
    )
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), kind(0.6, max_value=8.0)]
    )
    model.layers[0].kernel.assign(3.0 * np.eye(4, 3))
    learner = hs.BilevelModel(model, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner.compile(
        optimizer=hs.SGLD(1e-9, seed=0),
        loss=loss,
        hypergradient=hs.estimators.HPOSGLD(0, 2),
        hyper_optimizer=keras.optimizers.SGD(1.0),
    )
    arguments = dict(outer_data=(x[40:], y[40:]), batch_size=40, verbose=0)
    learner.fit(x[:40], y[:40], steps_per_epoch=2 * 100, **arguments)
    (value,) = learner.hyperparameter_values().values()
    inverses = np.linspace(0.2, 2.0, 20001)
    logits = x[40:] @ model.layers[0].kernel.numpy()
    scaled = inverses[:, None, None] * logits
    partition = np.log(np.exp(scaled).sum(-1)).mean(-1)
    losses = partition - scaled[:, np.arange(40), y[40:]].mean(-1)
    # As fine as the grid is.
    np.testing.assert_allclose(1 / value, inverses[losses.argmin()], atol=1e-3)
    assert value > 1.05
    np.testing.assert_allclose(model(x, training=True) / value, model(x), 1e-6)
    # Saved and loaded; exported; refit.
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.hyperparameter_values().popitem()[1] == value
    exported = learner.export()
    assert type(exported.layers[-1]) is keras.layers.Rescaling
    np.testing.assert_allclose(
        exported(x), x @ model.layers[0].kernel.numpy() / value, rtol=1e-5
    )
    learner.refit(x, y, optimizer="sgd", verbose=0)
    assert learner.hyperparameter_values().popitem()[1] == value


def test_what_a_kind_needs_is_public():
    for name in ("temperature", "hyperparameter_skeleton"):
        text = (FOLDER / f"{name}.py").read_text()
        used = set(re.findall(r"\b(?:hp|hs\.hyperparameters)\.(\w+)", text))
        assert used and used <= set(hs.hyperparameters.__all__)
