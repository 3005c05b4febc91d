"""A user's `tf.function` rewrites the estimators, too, and finds it can."""

import pytest
import tensorflow as tf
from tensorflow.python.autograph.utils import ag_logging
from test_estimator_contract import ANY_START
from test_estimator_contract import sampler_for
from test_estimator_contract import solve

import keras_hposgld as hs


@pytest.mark.parametrize(
    "alias",
    [
        pytest.param(
            alias, marks=[] if alias == "hpo_sgld" else pytest.mark.slow
        )
        for alias in ANY_START
    ],
)
def test_tensorflow_does_not_ask_users_to_report_a_bug(alias, monkeypatch):
    told = []
    monkeypatch.setattr(
        ag_logging, "warning", lambda text, *values: told.append(text % values)
    )
    problem = hs.BilevelProblem(
        lambda h, w, b: tf.reduce_sum((w - 1.0) ** 2 + h * w**2),
        lambda h, w, b: tf.reduce_sum(w**2),
        log_normalizer=lambda h, t: -tf.math.log(h),
    )

    sampler = sampler_for(alias)

    @tf.function  # with AutoGraph, as users write it
    def hypergradient(start):
        return solve(
            alias, problem, tf.constant(0.1), start, sampler
        ).hypergradient

    assert hypergradient(tf.zeros([2])) != 0
    assert told == []
