"""Draws of the weights of a linear model against their Gaussian law."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hposgld.samplers.exact_linear import cholesky
from keras_hposgld.samplers.exact_linear import draw
from keras_hposgld.samplers.exact_linear import LinearLaw

NUM_DRAWS, NOISE_VARIANCE = 20_000, 0.3


def make_law(num_examples, num_inputs, num_targets, num_priors, num_flat):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(num_examples, num_inputs))
    features += rng.normal(size=(num_examples, 1))  # correlated
    precision = rng.uniform(0.3, 4.0, (num_priors, num_inputs))
    center = rng.normal(size=(num_inputs, num_targets))
    if num_flat:
        features[:, -1] = 1.0
        precision[:, -1] = center[-1] = 0.0
    return LinearLaw(
        tf.constant(features),
        tf.constant(rng.normal(size=(num_examples, num_targets))),
        tf.constant(precision),
        tf.constant(center),
        tf.constant(NOISE_VARIANCE, tf.float64),
        num_flat,
    )


def moments(law, target):
    """Mean and covariance of the weights of one target, in NumPy."""
    x, y, center = law.features.numpy(), law.targets.numpy(), law.center.numpy()
    precision = law.precision.numpy()[target % len(law.precision)]
    covariance = np.linalg.inv(x.T @ x / NOISE_VARIANCE + np.diag(precision))
    force = x.T @ y[:, target] / NOISE_VARIANCE + precision * center[:, target]
    return covariance @ force, covariance


def draws_of(law):
    """Independent draws `(NUM_DRAWS, d, k)`: as many copies of the targets."""
    copies = [1, NUM_DRAWS]
    if len(law.precision) > 1:
        law = law._replace(precision=tf.tile(law.precision, copies[::-1]))
    law = law._replace(
        targets=tf.tile(law.targets, copies), center=tf.tile(law.center, copies)
    )
    columns = draw(law, tf.constant([1, 2])).numpy()
    return columns.reshape(len(columns), NUM_DRAWS, -1).transpose(1, 0, 2)


# Examples, inputs, targets, priors, columns without a prior.
LAWS = {
    "by_inputs": (7, 4, 1, 1, 0),
    "by_inputs_with_a_bias": (7, 4, 1, 1, 1),
    "by_inputs_several_priors": (7, 3, 2, 2, 1),
    "by_examples": (3, 6, 1, 1, 0),
    "by_examples_with_a_bias": (3, 6, 1, 1, 1),
    "by_examples_one_prior": (3, 5, 2, 1, 1),
    "by_examples_several_priors": (3, 5, 2, 2, 1),
}


@pytest.mark.parametrize("case", LAWS)
def test_draws_have_the_mean_and_covariance_of_the_law(case):
    law = make_law(*LAWS[case])
    draws = draws_of(law)
    num_targets = draws.shape[2]
    for target in range(num_targets):
        own = draws[:, :, target]
        mean, covariance = moments(law, target)
        deviation = np.sqrt(np.diag(covariance))
        error = (own.mean(0) - mean) / deviation
        assert np.abs(error).max() < 5 / np.sqrt(NUM_DRAWS)
        found = np.cov(own.T) / np.outer(deviation, deviation)
        correlation = covariance / np.outer(deviation, deviation)
        # An entry of a sample covariance has at most the variance 2 / n.
        np.testing.assert_allclose(
            found, correlation, atol=5 * np.sqrt(2 / NUM_DRAWS)
        )
    if num_targets == 2:  # targets are independent
        both = np.corrcoef(draws.reshape(NUM_DRAWS, -1).T)
        across = both[::2, 1::2]
        assert np.abs(across).max() < 5 / np.sqrt(NUM_DRAWS)


def test_energy_is_minus_the_log_density():
    law = make_law(*LAWS["by_inputs_with_a_bias"])
    mean, covariance = moments(law, 0)
    move = np.random.default_rng(1).normal(size=mean.shape)
    energies = [
        float(law.energy(tf.constant(w[:, None]))) for w in (mean, mean + move)
    ]
    expected = move @ np.linalg.solve(covariance, move) / 2
    np.testing.assert_allclose(energies[1] - energies[0], expected)


@pytest.mark.parametrize("num_inputs", [4, 9])
def test_both_forms_are_right_where_nearly_all_is_known(num_inputs):
    # Without noise, and with a weak prior: least squares, or interpolation.
    law = make_law(6, num_inputs, 1, 1, 1)
    law = law._replace(
        noise_variance=tf.constant(1e-14, tf.float64),
        center=tf.zeros_like(law.center),
    )
    w = draw(law, tf.constant([1, 2])).numpy()
    x, y = law.features.numpy(), law.targets.numpy()
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    error = np.linalg.norm(law.errors(w))
    assert abs(error - np.linalg.norm(y - x @ best)) < 1e-5


def test_graphs_and_xla_draw_the_same(run):
    law, seed = make_law(*LAWS["by_examples_with_a_bias"]), tf.constant([3, 4])
    drawn = run(lambda seed: draw(law, seed), seed)
    np.testing.assert_allclose(drawn, draw(law, seed), rtol=1e-9)
    assert not np.allclose(drawn, draw(law, tf.constant([3, 5])))


def test_root_of_a_matrix_that_rounding_has_spoilt():
    spoilt = np.ones((3, 3))
    spoilt[2, 2] -= 1e-15  # a negative eigenvalue
    root = cholesky(tf.constant(spoilt)).numpy()
    np.testing.assert_allclose(root @ root.T, spoilt, atol=1e-9)
    assert np.isnan(cholesky(tf.constant(np.nan * spoilt))).any()
