"""The standard error along a chain."""

import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.core.vectors import component_along
from keras_hposgld.estimators.batch_means import BatchMeans


def batch_means_error(series):
    """The same in NumPy, from the whole series."""
    num_samples = len(series)
    num_batches = max(2, int(np.sqrt(num_samples)))
    length = num_samples // num_batches
    cuts = [length * k for k in range(1, num_batches)]
    parts = np.split(np.asarray(series), cuts)
    between = sum(len(p) * (p.mean() - np.mean(series)) ** 2 for p in parts)
    return np.sqrt(between / (num_batches - 1) / num_samples)


@pytest.mark.parametrize("num_samples", [2, 3, 10, 17, 100])
def test_is_that_of_the_whole_series(rng, run, num_samples):
    series = rng.normal(size=num_samples) + np.linspace(0, 1, num_samples)

    def followed():
        error = BatchMeans.zero(tf.float64)
        for number in range(-3, num_samples + 1):  # the first are burn-in
            value = 7.0 if number < 1 else series[number - 1]
            error = error.add(
                tf.constant(value, tf.float64), tf.constant(number), num_samples
            )
        return error.standard_error(num_samples)

    np.testing.assert_allclose(
        run(followed), batch_means_error(series), rtol=1e-10
    )


def test_covers_the_error_of_correlated_samples(rng):
    # An AR(1) series: its mean has a variance that is known; the naive
    # standard error would be a quarter of it.
    decay, num_samples = 0.9, 4000
    noise = rng.normal(size=(200, num_samples))
    series = np.zeros_like(noise)
    for step in range(1, num_samples):
        series[:, step] = decay * series[:, step - 1] + noise[:, step]
    exact = 1 / (1 - decay) / np.sqrt(num_samples)
    errors = [batch_means_error(one) for one in series]
    # Batches of 63 samples leave a bias of some per cent.
    assert 0.85 * exact < np.mean(errors) < 1.05 * exact


def test_component_is_the_length_of_the_projection():
    vector = [tf.constant([3.0, 0.0]), tf.constant(4.0)]
    sample = [tf.constant([1.0, 5.0]), tf.constant(2.0)]
    np.testing.assert_allclose(component_along(vector, sample), 11 / 5)
    zeros = [tf.zeros([2]), tf.constant(0.0)]
    assert float(component_along(zeros, sample)) == 0.0


@pytest.mark.parametrize("direct", [0.0, 0.4])
def test_estimate_reports_that_of_its_samples(rng, run, direct):
    # One strength for all features, so that a component is a sample's value.
    ridge = problems.Ridge(rng)
    problem = hs.BilevelProblem(
        lambda s, w, batch: ridge.inner(tf.fill([4], s), w, batch),
        lambda s, w, batch: (
            ridge.outer(tf.zeros([4], s.dtype), w, batch)
            + direct * s * tf.reduce_sum(w**2)
        ),
    )
    sampler = hs.SGLD(0.05)
    strength = tf.constant(0.3, tf.float64)

    def solve(burn_in, num_samples):
        return run(
            lambda: hs.hypergradient(
                problem,
                strength,
                tf.constant(ridge.start),
                estimator=hs.estimators.HPOSGLD(burn_in, num_samples),
                sampler=sampler,
            )
        )

    samples = [float(solve(m, 1).hypergradient) for m in range(3, 9)]
    estimate = solve(3, 6)
    np.testing.assert_allclose(estimate.hypergradient, np.mean(samples))
    np.testing.assert_allclose(
        estimate.standard_error, batch_means_error(samples), rtol=1e-8
    )
    assert solve(3, 1).standard_error is None
