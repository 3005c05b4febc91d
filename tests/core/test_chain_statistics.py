"""Effective sample size and R-hat."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hposgld.core.chain_statistics import chain_statistics


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4000, 2, 3))
    for before, now in zip(noise[:-1], noise[1:], strict=True):
        now[...] = 0.8 * before + 0.6 * now  # keeps the variance 1
    return tf.constant(noise)


def test_correlated_draws_are_worth_fewer(draws, caplog):
    sizes, reduction = chain_statistics(draws)
    assert sizes.shape == (2, 3) and reduction.shape == (3,)
    # (1 - 0.8) / (1 + 0.8) of them.
    np.testing.assert_allclose(sizes, 4000 / 9, rtol=0.3)
    np.testing.assert_allclose(reduction, 1.0, atol=0.05)
    assert not caplog.records  # what TensorFlow Probability does is its own


def test_chains_apart_have_a_large_reduction(draws):
    apart = draws + tf.constant([0.0, 3.0], tf.float64)[:, None]
    _, reduction = chain_statistics(apart)
    assert np.all(reduction > 1.5)


def test_other_warnings_of_tensorflow_are_heard(draws, caplog):
    chain_statistics(draws)
    tf.get_logger().warning("another one")
    assert [record.message for record in caplog.records] == ["another one"]
