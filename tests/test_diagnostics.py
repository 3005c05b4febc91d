"""Diagnostics against what they must say on known chains."""

import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs


@pytest.mark.parametrize("reference", ["rmd", "fmd", "finite_differences"])
def test_exact_estimator_passes_against_every_reference(rng, reference):
    ridge = problems.Ridge(rng)
    check = hs.diagnostics.check_hypergradient(
        ridge.problem,
        tf.constant(ridge.strengths),
        tf.constant(ridge.start),
        estimator=hs.estimators.RMD(num_steps=7),
        sampler=hs.SGLD(0.05, temperature=0.1),
        reference=reference,
        seed=3,
    )
    assert check.cosine_similarity == pytest.approx(1.0, abs=1e-8)
    assert check.norm_ratio == pytest.approx(1.0, rel=1e-6)


def test_long_chain_of_the_papers_estimator_is_seen_as_too_long(rng):
    # Without a direct dependence the estimate grows with the chain, in about
    # the right direction.
    ridge = problems.Ridge(rng)
    problem = hs.BilevelProblem(
        ridge.inner, lambda s, w, b: ridge.outer(tf.zeros_like(s), w, b)
    )
    ratios = [
        hs.diagnostics.check_hypergradient(
            problem,
            {"s": tf.constant(ridge.strengths)}["s"],
            tf.constant(ridge.start),
            estimator=hs.estimators.HPOSGLD(length, length),
            sampler=hs.SGLD(0.1),
        ).norm_ratio
        for length in (100, 200)
    ]
    assert ratios[0] > 3
    assert ratios[1] == pytest.approx(2 * ratios[0], rel=0.1)


def test_unknown_reference_is_refused(rng):
    ridge = problems.Ridge(rng)
    with pytest.raises(ValueError, match="`reference` must be one of"):
        hs.diagnostics.check_hypergradient(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            sampler=hs.SGLD(0.1),
            reference="adjoint",
        )


@pytest.mark.parametrize("reference", ["rmd", "fmd", "finite_differences"])
def test_single_numbers_are_hyperparameters(reference):
    # Two of them, of rank 0. Of the Python integer `hypergradient` makes
    # float32, in which the differences of two chains have few digits.
    problem = hs.BilevelProblem(
        lambda h, w, batch: (w - 1.0) ** 2 + h[0] * w**2,
        lambda h, w, batch: (w - 0.5) ** 2 + 0.1 * tf.cast(h[1], w.dtype),
    )
    check = hs.diagnostics.check_hypergradient(
        problem,
        [tf.constant(0.5, tf.float64), 1],
        tf.constant(0.7, tf.float64),
        estimator=hs.estimators.RMD(num_steps=5),
        sampler=hs.SGLD(0.05),
        reference=reference,
        step=1e-3,
    )
    assert check.cosine_similarity == pytest.approx(1.0, abs=1e-5)
    assert check.norm_ratio == pytest.approx(1.0, rel=1e-3)
    assert check.reference[0].shape == ()


@pytest.mark.parametrize("reference", ["rmd", "fmd", "finite_differences"])
def test_hypergradient_of_zero_gives_defined_numbers(reference):
    # The chain starts where both objectives are least and stays there.
    problem = hs.BilevelProblem(
        lambda h, w, batch: tf.reduce_sum((1.0 + h) * w**2),
        lambda h, w, batch: tf.reduce_sum(w**2),
    )
    check = hs.diagnostics.check_hypergradient(
        problem,
        tf.constant([0.5, 0.2], tf.float64),
        tf.constant([0.0, 0.0], tf.float64),
        sampler=hs.SGLD(0.05),
        reference=reference,
    )
    assert check.cosine_similarity == 0.0
    assert check.norm_ratio == 1.0


def test_an_estimator_without_an_outer_objective_has_no_reference(rng):
    ridge = problems.Ridge(rng)
    with pytest.raises(ValueError, match="`estimator` must be one that diff"):
        hs.diagnostics.check_hypergradient(
            ridge.problem,
            ridge.strengths,
            ridge.start,
            estimator="evidence",
            sampler=hs.SGLD(0.1, 0.1),
        )


def test_step_of_the_differences_is_checked():
    with pytest.raises(ValueError, match="`step` must be a finite number abo"):
        hs.diagnostics.check_hypergradient(
            problems.Ridge(np.random.default_rng(0)).problem,
            tf.ones([4]),
            tf.ones([4]),
            sampler=hs.SGLD(0.1),
            step=0.0,
        )


def test_effective_sample_size_of_an_autoregression(rng):
    # An AR(1) series is worth n (1 - decay) / (1 + decay) samples.
    decay, num_samples = 0.8, 20_000
    noise = rng.normal(size=(num_samples, 4))
    series = np.zeros_like(noise)
    for step in range(1, num_samples):
        series[step] = decay * series[step - 1] + noise[step]
    summary = hs.diagnostics.chain_summary(series)
    expected = 4 * num_samples * (1 - decay) / (1 + decay)
    assert summary.effective_sample_size == pytest.approx(expected, rel=0.1)
    assert summary.is_mixed


def test_chains_that_disagree_or_drift_are_flagged(rng):
    samples = rng.normal(size=(400, 4))
    apart = samples + np.array([0.0, 0.0, 3.0, 3.0])
    assert not hs.diagnostics.chain_summary(apart).is_mixed
    drifting = samples[:, 0] + np.linspace(0, 3, 400)
    assert not hs.diagnostics.chain_summary(drifting).is_mixed
    assert hs.diagnostics.chain_summary(samples[:, 0]).is_mixed
    with pytest.raises(ValueError, match="at least 4 samples"):
        hs.diagnostics.chain_summary(samples[:3])


def double_well_chains(temperature, num_steps=100_000):
    """Samples on a tilted double well, from starts in both wells."""
    sampler = hs.SGLD(0.02, temperature=temperature)
    start = tf.constant([-1.2, -1.0, -0.8, 0.8, 1.0, 1.2], tf.float64)

    @tf.function(autograph=False, jit_compile=True)
    def chains():
        samples = tf.TensorArray(tf.float64, num_steps, element_shape=[6])

        def body(step, w, samples):
            gradient = 4 * w * (w**2 - 1) + 0.2
            (w,) = sampler.move([w], [gradient], step, tf.constant([1, 0]))
            return step + 1, w, samples.write(step, w)

        *_, samples = tf.while_loop(
            lambda step, *_: step < num_steps,
            body,
            (tf.constant(0), start, samples),
            maximum_iterations=num_steps,
        )
        return samples.stack()

    return chains().numpy()


@pytest.mark.parametrize(
    "temperature, mixes",
    [(0.01, False), (0.1, False), (0.5, True), (1.0, True)],
)
def test_double_well_is_flagged_where_chains_stay_in_their_well(
    temperature, mixes
):
    # The barrier is about 1, and 2000 units of time pass: at temperature 0.1
    # it is crossed about once in exp(10) of them, at 0.5 in exp(2).
    samples = double_well_chains(temperature)
    summary = hs.diagnostics.chain_summary(samples[10_000:])
    assert summary.is_mixed == mixes
