"""The experiments on AdjointSGLD and samplers: what they compare with."""

import importlib
import pathlib
import sys

import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs

pytest.importorskip("matplotlib", reason="the experiments need matplotlib")

ROOT = pathlib.Path(__file__).parents[2]
FOLDERS = [ROOT / "experiments" / name for name in ("adjoint", "samplers")]
PAGES = {
    "bias": "adjoint_sgld",
    "burn_in": "adjoint_sgld",
    "cost": "adjoint_sgld",
    "double_well": "adjoint_sgld",
    "fixed_scales": "samplers",
    "long_chains": "algorithm",
    "minibatches": "adjoint_sgld",
    "normalization": "adjoint_sgld",
}


@pytest.fixture(scope="module")
def load():
    added = [str(folder) for folder in FOLDERS]  # as for a script that is run
    sys.path.extend(added)
    yield importlib.import_module
    for folder in added:
        sys.path.remove(folder)


@pytest.mark.parametrize("name", ["Quartic", "Correlated", "Wells"])
def test_exact_derivative_is_the_covariance_of_the_law(load, name):
    # dE[f]/dlambda = E[df/dlambda] - Cov(f, dL/dlambda) / tau, on the grids.
    laws = load("laws")
    problem, temperature, step = getattr(laws, name)(), 0.3, 1e-5
    weights = np.meshgrid(*problem.grids, indexing="ij")
    at = np.array(problem.hyperparameters)
    energy = problem.energy(at, weights)
    density = np.exp(-(energy - energy.min()) / temperature)
    density /= density.sum()

    def slope(function, unit):
        up, down = (function(at + s * unit, weights) for s in (step, -step))
        return (np.asarray(up) - np.asarray(down)) / (2 * step)

    f = np.asarray(problem.outer(at, weights))
    expected = []
    for unit in np.eye(len(at)):
        score = slope(problem.energy, unit)
        covariance = np.sum(density * (f - np.sum(density * f)) * score)
        direct = np.sum(density * slope(problem.outer, unit))
        expected.append(direct - covariance / temperature)
    np.testing.assert_allclose(
        laws.exact(problem, temperature), expected, rtol=1e-6
    )


def test_variant_has_the_q_of_after_the_step(load):
    # On s w^2 / 2, f = w^2 / 2 at s = 1 it gives -tau/2 / (1 - x/2)^2, with
    # x = alpha; the estimator itself (1 - x) times as much.
    kind, number = load("bias").AfterTheStep, 20_000
    problem = hs.BilevelProblem(
        lambda s, w, b: tf.reduce_sum(s * w**2) / 2,
        lambda s, w, b: tf.reduce_sum(w**2) / 2,
    )
    sampler = hs.SGLD(0.5, temperature=0.3)

    @tf.function(autograph=False, jit_compile=True)
    def chains():
        return hs.hypergradient(
            problem,
            tf.ones([number], tf.float64),
            tf.zeros([number], tf.float64),
            estimator=kind(60, 60),
            sampler=sampler,
        ).hypergradient

    draws = chains().numpy()
    error = draws.std() / np.sqrt(number)
    assert error < 0.002
    assert abs(draws.mean() + 0.15 / 0.75**2) < 4 * error


def test_single_steps_are_iterations_of_soba(rng):
    # Dagreou et al., 2022: z, v and x move together, from their old values.
    ridge = problems.Ridge(rng)
    rate, outer_rate = 0.1, 0.05
    sampler, estimate = hs.SGLD(rate), None
    x, z, v = ridge.strengths, ridge.start, np.zeros(4)
    ours = tf.constant(ridge.strengths)
    for _ in range(30):
        estimate = hs.hypergradient(
            ridge.problem,
            ours,
            None if estimate else tf.constant(ridge.start),
            estimator=hs.estimators.AdjointSGLD(0, 1),
            sampler=sampler,
            previous=estimate,
        )
        ours -= outer_rate * estimate.hypergradient
        # Here q = -v.
        inner_step = ridge.inner_gradient(x, z)
        solve_step = ridge.inner_hessian(x) @ v + ridge.outer_gradient(z)
        outer_step = 0.6 * x + v @ ridge.inner_mixed(z)
        z = z - rate * inner_step
        v = v - rate * solve_step
        x = x - outer_rate * outer_step
    np.testing.assert_allclose(ours, x, rtol=1e-12)
    np.testing.assert_allclose(estimate.params, z, rtol=1e-12)
    np.testing.assert_allclose(estimate.kept[0], -v, rtol=1e-12)


def test_targets_of_the_minibatches(load):
    regression = load("minibatches").Regression()

    def outer(example_weights):
        # The minimum of the whole objective, by its normal equations.
        x, y = regression.x, regression.y
        scale = 2 / len(y) * example_weights
        hessian = x.T @ (scale[:, None] * x) + 0.2 * np.eye(x.shape[1])
        solution = np.linalg.solve(hessian, x.T @ (scale * y))
        error = regression.x_outer @ solution - regression.y_outer
        return np.mean(error**2)

    units = 1e-5 * np.eye(len(regression.example_weights))
    at = regression.example_weights
    expected = [(outer(at + e) - outer(at - e)) / 2e-5 for e in units]
    implicit = regression.implicit()
    np.testing.assert_allclose(implicit, expected, rtol=1e-6)
    # With all examples in each batch SGD is gradient descent, which is within
    # 1e-7 of its end after 400 steps.
    chain = regression.of_the_chain(12, 0.1, num_steps=450, num_chains=1)
    np.testing.assert_allclose(chain, implicit, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_script_renews_the_tables_of_its_page(load, name, tmp_path):
    page = tmp_path / "page.md"
    text = (ROOT / "docs" / f"{PAGES[name]}.md").read_text()
    page.write_text(text)
    arguments = ["--quick", "--output", str(tmp_path), "--page", str(page)]
    load(name).main(arguments)
    assert page.read_text() != text
