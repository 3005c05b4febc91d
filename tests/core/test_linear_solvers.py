"""Solvers against NumPy, at scales and settings that are not the defaults."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hposgld.core import linear_solvers


def make_system(rng, scale=1.0):
    """A symmetric positive definite matrix over a list of two tensors."""
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    matrix = basis @ np.diag(scale * np.array([1, 2, 3, 4, 5.0])) @ basis.T

    def matvec(vector):
        flat = tf.concat([tf.reshape(part, [-1]) for part in vector], 0)
        product = tf.linalg.matvec(matrix, flat)
        return [tf.reshape(product[:4], [2, 2]), product[4:]]

    flat = rng.normal(size=5)
    rhs = [tf.constant(flat[:4].reshape(2, 2)), tf.constant(flat[4:])]
    return matrix, matvec, rhs, flat


def flatten(vector):
    return np.concatenate([np.ravel(part) for part in vector])


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_conjugate_gradient_solves_in_as_many_steps_as_unknowns(
    rng, run, scale
):
    matrix, matvec, rhs, flat = make_system(rng, scale)
    x, residual = run(
        lambda: linear_solvers.conjugate_gradient(matvec, rhs, 5, 0.0)
    )
    np.testing.assert_allclose(
        flatten(x), np.linalg.solve(matrix, flat), rtol=1e-8
    )
    assert float(residual) < 1e-9


def test_conjugate_gradient_reports_the_residual_it_stopped_at(rng, run):
    matrix, matvec, rhs, flat = make_system(rng)
    for iterations, tolerance in ((2, 0.0), (5, 0.2)):
        x, residual = run(
            lambda n=iterations, tol=tolerance: (
                linear_solvers.conjugate_gradient(matvec, rhs, n, tol)
            )
        )
        true = flat - matrix @ flatten(x)
        np.testing.assert_allclose(
            residual, np.linalg.norm(true) / np.linalg.norm(flat), rtol=1e-8
        )
        assert 1e-6 < float(residual)
    assert float(residual) <= 0.2


@pytest.mark.parametrize(
    "diagonal, rhs, expected",
    [
        # Plain conjugate gradients go to (2, 2), of three times the residual.
        # What is left points along a direction of negative curvature.
        ([2.0, -1.0], [1.0, 1.0], [0.2, 0.2]),
        # No curvature at all in what is left.
        ([1.0, 0.0], [1.0, 0.5], [1.0, 0.5]),
        # No step at all.
        ([-1.0, -1.0], [1.0, 0.5], [0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("max_iterations", [1, 2, 10])
def test_conjugate_gradient_never_adds_to_the_residual_at_a_saddle(
    run, diagonal, rhs, expected, max_iterations
):
    rhs = tf.constant(rhs, tf.float64)
    diagonal = tf.constant(diagonal, tf.float64)
    x, residual = run(
        lambda: linear_solvers.conjugate_gradient(
            lambda v: [diagonal * v[0]], [rhs], max_iterations, 1e-12
        )
    )
    np.testing.assert_allclose(x[0], expected, rtol=1e-12)
    true = np.linalg.norm(rhs - diagonal * x[0]) / np.linalg.norm(rhs)
    np.testing.assert_allclose(residual, true, rtol=1e-12)
    assert float(residual) <= 1.0


@pytest.mark.parametrize("num_iterations", [1, 4, 11])
def test_conjugate_gradient_stopped_early_has_the_least_residual(
    rng, run, num_iterations
):
    # Of all combinations of the products, by least squares. The system is so
    # ill-conditioned that the residuals of plain conjugate gradients rise.
    eigenvalues = np.geomspace(1e-4, 1.0, 30)
    rhs = rng.normal(size=30)
    powers = eigenvalues[:, None] ** np.arange(num_iterations)
    basis = np.linalg.qr(powers * rhs[:, None])[0]
    images = eigenvalues[:, None] * basis
    expected = basis @ np.linalg.lstsq(images, rhs, rcond=None)[0]
    diagonal = tf.constant(eigenvalues)
    x, residual = run(
        lambda: linear_solvers.conjugate_gradient(
            lambda v: [diagonal * v[0]], [tf.constant(rhs)], num_iterations, 0.0
        )
    )
    np.testing.assert_allclose(x[0], expected, rtol=1e-6)
    true = np.linalg.norm(rhs - eigenvalues * x[0]) / np.linalg.norm(rhs)
    np.testing.assert_allclose(residual, true, rtol=1e-8)


@pytest.mark.parametrize("spoiled", [np.nan, np.inf, -np.inf])
def test_conjugate_gradient_returns_its_last_finite_iterate(run, spoiled):
    # All products but the first are spoiled.
    rhs = [tf.constant([1.0, 0.5], tf.float64)]
    diagonal = tf.constant([1.0, 2.0], tf.float64)

    def matvec(v):
        is_first = tf.reduce_all(v[0] == rhs[0])
        return [tf.where(is_first, diagonal * v[0], spoiled * v[0])]

    x, residual = run(
        lambda: linear_solvers.conjugate_gradient(matvec, rhs, 10, 0.0)
    )
    # One step along (1, 0.5), whose product is (1, 1): of length 1.5 / 2.
    np.testing.assert_allclose(x[0], [0.75, 0.375], rtol=1e-12)
    np.testing.assert_allclose(residual, np.sqrt(0.125 / 1.25), rtol=1e-12)


@pytest.mark.parametrize("num_terms", [1, 7])
def test_neumann_series_is_its_partial_sum(rng, run, num_terms):
    matrix, matvec, rhs, flat = make_system(rng)
    step = 0.15
    x, residual = run(
        lambda: linear_solvers.neumann_series(matvec, rhs, num_terms, step)
    )
    expected = sum(
        step * np.linalg.matrix_power(np.eye(5) - step * matrix, k) @ flat
        for k in range(num_terms)
    )
    np.testing.assert_allclose(flatten(x), expected, rtol=1e-10)
    np.testing.assert_allclose(
        residual,
        np.linalg.norm(flat - matrix @ expected) / np.linalg.norm(flat),
        rtol=1e-10,
    )


def test_largest_curvature_is_the_largest_eigenvalue(rng, run):
    _, matvec, rhs, _ = make_system(rng, 3.0)
    size = run(lambda: linear_solvers.largest_curvature(matvec, rhs, 60))
    np.testing.assert_allclose(size, 15.0, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_largest_curvature_is_found_where_the_start_has_nothing_of_it(
    run, dtype
):
    # The eigenvector of 6 is missing from the start, up to 1e-9 (0 in half
    # precision). Ten products take the other one's share down to 6**-10.
    diagonal = tf.constant([6.0, 1.0], dtype)
    start = [tf.constant([1e-9, 1.0], dtype)]
    size = run(
        lambda: linear_solvers.largest_curvature(
            lambda v: [diagonal * v[0]], start
        )
    )
    rtol = {"float16": 2e-3, "bfloat16": 2e-2}.get(dtype, 1e-6)
    np.testing.assert_allclose(float(size), 6.0, rtol=rtol)


def test_neumann_series_with_the_step_from_that_estimate_converges(run):
    # It diverged, to 1e25: the step was 1 over the curvature along `rhs`.
    diagonal = tf.constant([6.0, 1.0], tf.float64)
    rhs = [tf.constant([1e-9, 1.0], tf.float64)]

    def matvec(v):
        return [diagonal * v[0]]

    def solve():
        step_size = 1.0 / linear_solvers.largest_curvature(matvec, rhs)
        return linear_solvers.neumann_series(matvec, rhs, 50, step_size)

    x, residual = run(solve)
    # The slow mode is left with (1 - 1/6)**50 = 1.1e-4 of its error.
    np.testing.assert_allclose(x[0][1], 1.0, rtol=2e-4)
    np.testing.assert_allclose(residual, (5 / 6) ** 50, rtol=1e-3)


def test_largest_curvature_is_the_same_however_it_runs(rng):
    # The step size follows from it, and from that all that IFT returns.
    _, matvec, rhs, _ = make_system(rng, 3.0)

    def call():
        return linear_solvers.largest_curvature(matvec, rhs)

    sizes = [
        call(),
        tf.function(call)(),
        tf.function(call, jit_compile=True)(),
    ]
    np.testing.assert_allclose(sizes, sizes[0], rtol=1e-12)


def test_largest_curvature_along_nothing_is_zero(run):
    size = run(
        lambda: linear_solvers.largest_curvature(lambda v: v, [tf.zeros([3])])
    )
    assert float(size) == 0.0


def test_zero_right_hand_side_gives_zero(run):
    for solve in (
        lambda matvec, rhs: linear_solvers.conjugate_gradient(
            matvec, rhs, 3, 1e-6
        ),
        lambda matvec, rhs: linear_solvers.neumann_series(matvec, rhs, 3, 0.1),
    ):
        x, residual = run(lambda f=solve: f(lambda v: v, [tf.zeros([2])]))
        np.testing.assert_array_equal(x[0], [0.0, 0.0])
        assert float(residual) == 0.0
