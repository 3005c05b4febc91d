"""How much of a derivative a chain sees, where it is known in closed form.

A weight under a constant force b and a penalty exp(h) w^2 comes to rest at
w = b / (2 exp(h)), whose derivative by h is -w. The loss has no curvature of
its own, so that what a chain from there sees of it is what `share_seen` says.
"""

import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.estimators import share_seen

FORCE, SLOPE, STRENGTH, RATE = 0.7, 1.3, 0.4, 0.05
CHAINS = {
    "hpo_sgld": hs.estimators.HPOSGLD(0, 5),
    "hpo_sgld_burn_in": hs.estimators.HPOSGLD(7, 4),
    "hpo_sgld_outer_every": hs.estimators.HPOSGLD(0, 6, outer_every=6),
    "rmd": hs.estimators.RMD(num_steps=12),
    "truncated": hs.estimators.RMD(truncation=4, num_steps=12),
    "fmd": hs.estimators.FMD(12),
    "adjoint_sgld_cold": hs.estimators.AdjointSGLD(9, 1, warm_start=False),
}


def penalized():
    """A penalty in the objective; the rate of rest of a unit of step."""
    problem = hs.BilevelProblem(
        lambda h, w, batch: tf.exp(h) * w**2 - FORCE * w,
        lambda h, w, batch: SLOPE * w,
    )
    return problem, 2 * STRENGTH


def decaying():
    """A decoupled decay."""
    problem = hs.BilevelProblem(
        lambda h, w, batch: -FORCE * w + 0.0 * h,
        lambda h, w, batch: SLOPE * w,
        decay=lambda h, w: tf.exp(h) * w,
    )
    return problem, STRENGTH


def share_of(estimator, problem, curvature, sampler):
    """What an estimate holds of the derivative of the weight at rest."""
    rest = FORCE / curvature
    estimate = hs.hypergradient(
        problem,
        tf.constant(np.log(STRENGTH), tf.float64),
        tf.constant(rest, tf.float64),
        estimator=estimator,
        sampler=sampler,
    )
    return float(estimate.hypergradient) / (-SLOPE * rest)


def claimed(estimator, rate, momentum=0.0):
    return float(estimator.share_seen(tf.constant(rate, tf.float64), momentum))


@pytest.mark.parametrize("name", CHAINS)
def test_share_of_a_penalty(name):
    estimator, (problem, curvature) = CHAINS[name], penalized()
    share = share_of(estimator, problem, curvature, hs.SGLD(RATE))
    assert share == pytest.approx(
        claimed(estimator, RATE * curvature), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("name", ["hpo_sgld_burn_in", "rmd", "fmd"])
def test_share_of_a_decay(name):
    estimator, (problem, curvature) = CHAINS[name], decaying()
    share = share_of(estimator, problem, curvature, hs.SGLD(RATE))
    assert share == pytest.approx(claimed(estimator, RATE * curvature))


def test_share_under_momentum_grows_as_the_velocity_does():
    problem, curvature = penalized()
    sampler = hs.SGLD(RATE, momentum=0.8)
    for estimator in (CHAINS["hpo_sgld"], CHAINS["hpo_sgld_burn_in"]):
        share = share_of(estimator, problem, curvature, sampler)
        rate = RATE * curvature / (1 - 0.8)
        assert share == pytest.approx(claimed(estimator, rate, 0.8))
        assert share < 0.8 * claimed(estimator, rate)


def test_estimates_of_a_law_hold_all_of_it():
    problem, curvature = penalized()
    estimator = hs.estimators.AdjointSGLD(40, 1)
    share = share_of(estimator, problem, curvature, hs.SGLD(0.6))
    assert share == pytest.approx(1.0)
    for kind in (estimator, hs.estimators.ScoreCovariance(), "ift_cg"):
        assert claimed(hs.estimators.get(kind), 1e-3) == 1.0


def test_share_ends_at_the_whole():
    rates = tf.constant([0.0, 0.3, 1.0, 1.7], tf.float64)
    shares = share_seen.after(10, rates)
    np.testing.assert_allclose(shares, [0.0, 1 - 0.7**10, 1.0, 1.0], rtol=1e-9)
