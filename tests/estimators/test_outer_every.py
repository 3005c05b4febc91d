"""The outer gradient computed at every k-th step, against NumPy."""

import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs

ALPHA = 0.07


def is_due(index, num_steps, outer_every):
    return index == 0 or (num_steps - 1 - index) % outer_every == 0


def hpo_sgld(ridge, burn_in, num_samples, outer_every):
    """Equations 22 and 25, with the v of the last step at which it is due."""
    num_steps = burn_in + num_samples
    w, g, h = ridge.start, 0.0, 0.0
    for index in range(num_steps):
        old = w
        w = old - ALPHA * ridge.inner_gradient(ridge.strengths, old)
        if is_due(index, num_steps, outer_every):
            v = ridge.outer_gradient(w)
        g = g - ALPHA * v @ ridge.inner_mixed(old)
        if index >= burn_in:
            h = h + (0.6 * ridge.strengths + g) / num_samples
    return h


def adjoint_sgld(ridge, burn_in, num_samples, outer_every):
    num_steps = burn_in + num_samples
    w, q, h = ridge.start, np.zeros(4), 0.0
    hessian = ridge.inner_hessian(ridge.strengths)
    for index in range(num_steps):
        if is_due(index, num_steps, outer_every):
            v = ridge.outer_gradient(w)
        if index >= burn_in:  # with the q of before the step
            sample = 0.6 * ridge.strengths - q @ ridge.inner_mixed(w)
            h = h + sample / num_samples
        q = q - ALPHA * (hessian @ q - v)
        w = w - ALPHA * ridge.inner_gradient(ridge.strengths, w)
    return h


CASES = {
    "hpo_sgld": (hs.estimators.HPOSGLD, hpo_sgld),
    "adjoint_sgld": (hs.estimators.AdjointSGLD, adjoint_sgld),
}


@pytest.mark.parametrize("outer_every", [1, 2, 3, 20])
@pytest.mark.parametrize("alias", CASES)
def test_hypergradient_has_the_v_of_the_steps_where_it_is_due(
    rng, run, alias, outer_every
):
    estimator, expected = CASES[alias]
    ridge, sampler = problems.Ridge(rng), hs.SGLD(ALPHA)
    result = run(
        lambda strengths, start: hs.hypergradient(
            ridge.problem,
            strengths,
            start,
            estimator=estimator(3, 4, outer_every=outer_every),
            sampler=sampler,
        ),
        tf.constant(ridge.strengths),
        tf.constant(ridge.start),
    )
    np.testing.assert_allclose(
        result.hypergradient, expected(ridge, 3, 4, outer_every), rtol=1e-10
    )


@pytest.mark.parametrize("alias", CASES)
def test_outer_objective_is_computed_at_due_steps_only(rng, alias):
    calls = []

    def outer(strength, weight, batch):
        calls.append(1)  # once a step, since all of this runs eagerly
        return (weight - 0.5) ** 2

    hs.hypergradient(
        hs.BilevelProblem(lambda h, w, b: (w - 1) ** 2 + h * w**2, outer),
        tf.constant(0.1),
        tf.constant(0.0),
        estimator=CASES[alias][0](3, 4, outer_every=3),
        sampler=hs.SGLD(ALPHA),
    )
    assert len(calls) == 3  # steps 0, 3 and 6 of seven


def test_difference_of_gradients_is_the_hessian_product(rng, run):
    # Ridge regression is quadratic: nothing is cut off, only rounded.
    ridge, sampler = problems.Ridge(rng), hs.SGLD(ALPHA)
    estimator = hs.estimators.AdjointSGLD(3, 4, hessian_product="difference")
    result = run(
        lambda strengths, start: hs.hypergradient(
            ridge.problem,
            strengths,
            start,
            estimator=estimator,
            sampler=sampler,
        ),
        tf.constant(ridge.strengths),
        tf.constant(ridge.start),
    )
    np.testing.assert_allclose(
        result.hypergradient, adjoint_sgld(ridge, 3, 4, 1), rtol=1e-7
    )
