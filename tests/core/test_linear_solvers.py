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


def test_conjugate_gradient_stops_at_a_direction_without_curvature(run):
    # One step along the first axis, then the second has negative curvature.
    diagonal = tf.constant([1.0, -1.0], tf.float64)
    rhs = [tf.constant([1.0, 0.5], tf.float64)]
    x, _ = run(
        lambda: linear_solvers.conjugate_gradient(
            lambda v: [diagonal * v[0]], rhs, 10, 1e-12
        )
    )
    assert np.all(np.isfinite(x[0]))


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
