"""The oracles themselves, checked by central differences."""

import numpy as np
import problems


def test_ridge_hypergradient_matches_central_differences(rng):
    ridge = problems.Ridge(rng)
    step = 1e-5

    def outer_at_solution(strengths):
        return ridge.outer_value(strengths, ridge.solution(strengths))

    numeric = [
        (
            outer_at_solution(ridge.strengths + step * direction)
            - outer_at_solution(ridge.strengths - step * direction)
        )
        / (2 * step)
        for direction in np.eye(len(ridge.strengths))
    ]
    # Central differences are off by step**2 and by rounding / step.
    np.testing.assert_allclose(
        ridge.exact_hypergradient(ridge.strengths), numeric, rtol=1e-7
    )


def test_ridge_derivatives_match_central_differences(rng):
    ridge = problems.Ridge(rng)
    step = 1e-5
    directions = np.eye(len(ridge.start))

    def numeric(function):
        return np.array(
            [
                (
                    function(ridge.start + step * d)
                    - function(ridge.start - step * d)
                )
                / (2 * step)
                for d in directions
            ]
        )

    np.testing.assert_allclose(
        ridge.outer_gradient(ridge.start),
        numeric(lambda w: ridge.outer_value(ridge.strengths, w)),
        rtol=1e-7,
    )
    np.testing.assert_allclose(
        ridge.outer_hessian(ridge.start),
        numeric(ridge.outer_gradient),
        rtol=1e-7,
    )
    np.testing.assert_allclose(
        ridge.inner_hessian(ridge.strengths),
        numeric(lambda w: ridge.inner_gradient(ridge.strengths, w)),
        rtol=1e-7,
        atol=1e-9,
    )
