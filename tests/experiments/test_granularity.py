"""The experiment on granularity: its gradient, its minimizer, its guard."""

import importlib
import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs

pytest.importorskip("matplotlib", reason="the experiments need matplotlib")
pytest.importorskip("sklearn", reason="the sets are scikit-learn's")

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = [ROOT / "experiments", ROOT / "experiments" / "granularity"]
FOLDERS.append(ROOT / "experiments" / "theory")


@pytest.fixture(scope="module")
def load():
    added = [str(folder) for folder in FOLDERS]  # as for a script that is run
    sys.path.extend(added)
    yield importlib.import_module
    for folder in added:
        sys.path.remove(folder)


def data(rng, outputs=1):
    """Three of six inputs are relevant. No part has a mean of 0."""
    x = rng.normal(size=(47, 6)) + 0.3
    truth = np.array([2.0, -1.0, 1.0, 0.0, 0.0, 0.0])[:, None]
    return x, x @ truth + 3 * rng.normal(size=(47, outputs)) + 2.0


@pytest.fixture
def folds(load, rng):
    x, y = data(rng)
    ridge = load("ridge")
    return ridge.Folds.cross(x, y, ridge.parts_of(len(x), 4, rng))


def slopes(value, point, step=1e-5):
    """Central differences at every entry of an array."""
    found = np.zeros(point.shape)
    for index in np.ndindex(point.shape):
        shift = np.zeros(point.shape)
        shift[index] = step
        change = value(point + shift) - value(point - shift)
        found[index] = change / (2 * step)
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_equals_central_differences(load, rng, shared):
    x, y = data(rng, outputs=3)
    ridge = load("ridge")
    folds = ridge.Folds.cross(x, y, ridge.parts_of(len(x), 4, rng))
    logs = rng.normal(size=(6, 1 if shared else 3)) - 1.0
    value, gradient = folds.value_and_gradient(logs)
    # The loss from moments is that of the residuals, the mean of all of them.
    np.testing.assert_allclose(
        value, folds.squared_errors(logs).mean(), rtol=1e-12
    )
    # Differences are off by rounding, 1e-16 / 1e-5, and by the squared step.
    np.testing.assert_allclose(
        gradient, slopes(folds.value, logs), rtol=1e-6, atol=1e-9
    )


def test_gradient_equals_that_of_the_functional_core(load, rng):
    x, y = data(rng)
    ridge = load("ridge")
    inner, outer = np.split(rng.permutation(len(x)), [30])
    logs = rng.normal(size=(6, 1)) - 1.0
    a, b = (v[inner] - v[inner].mean(0) for v in (x, y))
    c, d = (v[outer] - v[inner].mean(0) for v in (x, y))

    def inner_objective(logs, weights, batch):
        penalty = tf.reduce_sum(tf.exp(logs) * weights**2)
        return tf.reduce_mean((b - a @ weights) ** 2) + penalty

    def outer_objective(logs, weights, batch):
        return tf.reduce_mean((d - c @ weights) ** 2)

    estimate = hs.hypergradient(
        hs.BilevelProblem(inner_objective, outer_objective),
        tf.constant(logs),
        tf.constant(ridge.fit(a, b, logs)),
        estimator=hs.estimators.IFTCG(20, tolerance=1e-12, num_steps=1),
        sampler=hs.SGLD(0.01),
    )
    folds = ridge.Folds(x, y, [(inner, outer)])
    # The residual's tolerance, and the step that leaves the minimum in place.
    np.testing.assert_allclose(
        estimate.hypergradient,
        folds.value_and_gradient(logs)[1],
        rtol=1e-8,
        atol=1e-12,
    )


@pytest.mark.parametrize("prior", ["laplace", "gauss", None])
def test_minimizer_reaches_a_stationary_point(load, folds, prior):
    strengths = load("strengths")
    m, noise = strengths.best_scalar(folds)
    problem = strengths.Deviations(folds, "input", prior, 5.0, noise)
    logs, d = strengths.learn(folds, m, noise, prior=prior, scale=5.0)
    _, by_m, by_d = problem.smooth(logs[0, 0] - d[0], d)
    weight = problem.weight
    if prior == "laplace":
        assert 0 < np.sum(d != 0) < 6
        # The slope is the prior's where d moved, and at most that elsewhere.
        free = by_d + weight * np.sign(d)
        pull = np.where(d == 0, np.maximum(np.abs(by_d) - weight, 0), free)
    else:
        pull = by_d + 2 * weight * d
    # The minimizer stops when its value stands still to 1e-10 of itself.
    inside = np.abs(d) < strengths.FARTHEST
    assert np.max(np.abs(pull[inside])) < 1e-5
    assert abs(by_m) < 1e-5


def test_strong_prior_keeps_the_scalar(load, folds):
    strengths = load("strengths")
    m, noise = strengths.best_scalar(folds)
    logs, d = strengths.learn(folds, m, noise, scale=0.01)
    np.testing.assert_array_equal(d, 0.0)
    np.testing.assert_allclose(logs, m, atol=2e-3)
    _, moved = strengths.learn(folds, m, noise, scale=5.0)
    assert np.any(moved != 0)


@pytest.mark.parametrize("granularity", ["input", "output", "parameter"])
def test_penalized_loss_has_the_gradient_it_returns(load, rng, granularity):
    x, y = data(rng, outputs=2)
    ridge, strengths = load("ridge"), load("strengths")
    folds = ridge.Folds.cross(x, y, ridge.parts_of(len(x), 3, rng))
    for prior in ("laplace", "gauss"):
        problem = strengths.Deviations(folds, granularity, prior, 0.7, 0.4)
        size = 2 * int(np.prod(problem.shape))
        point = np.concatenate([[-1.0], rng.uniform(0.1, 1.0, size)])
        np.testing.assert_allclose(
            problem.split(point)[1],
            slopes(lambda p: problem.split(p)[0], point),  # noqa: B023
            rtol=1e-6,
            atol=1e-9,
        )


def test_cross_fitted_gain_never_sees_the_part(load, rng):
    # Wild targets in one part change what is learned for the others, but not
    # the strengths or the weights by which that part is predicted.
    guard, ridge = load("guard"), load("ridge")
    x, y = data(rng)
    parts = ridge.parts_of(len(x), 4, rng)
    seen = []

    def spy(x, y, inner, outer, logs):
        seen.append((tuple(sorted(inner)), logs.copy()))
        return np.zeros((len(outer), 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guard, "squared_errors", spy)
        guard.cross_fitted_gain(guard.without_each(x, y, parts))
        y[parts[0]] = 100 * rng.normal(size=(len(parts[0]), 1))
        guard.cross_fitted_gain(guard.without_each(x, y, parts))
    before, after = seen[:8], seen[8:]
    for (inner, logs), (same, other) in zip(before, after, strict=True):
        assert inner == same
        assert np.array_equal(logs, other) == (not set(parts[0]) & set(inner))


def test_guard_wants_more_than_the_noise(load):
    exceeds = load("guard").exceeds
    gains = np.array([1.0, 3.0, 1.0, 3.0])  # 2 with an error of 0.577
    assert exceeds(gains) and exceeds(gains, 3.4)
    assert not exceeds(gains, 3.5)
    assert not exceeds(np.zeros(4))


def test_quick_run_writes_tables_and_rows(load, tmp_path):
    page, out = tmp_path / "page.md", tmp_path / "rows.json"
    text = (ROOT / "docs" / "granularity.md").read_text()
    page.write_text(text)
    load("auto").main(["--quick", "--out", str(out), "--page", str(page)])
    assert page.read_text() != text
    rows = json.loads(out.read_text())
    assert [len(found) for found in rows["inputs"].values()] == [2, 2]
    for found in rows["inputs"].values():
        for row in found:
            rule = "folds + Laplace 2"
            kept = rule if row[f"{rule} + guard, kept"] else "scalar"
            assert row[f"{rule} + guard"] == row[kept]
