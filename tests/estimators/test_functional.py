"""`hypergradient`: what it takes, and what it must not confuse."""

import dataclasses

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.estimators.registry import REGISTRY

ANY_START = [a for a in REGISTRY.aliases if a != "first_order"]
QUARTIC = hs.BilevelProblem(
    lambda h, w, b: (w - 1) ** 2 + h[0] * w**2 + 2 * h[1] * w**4,
    lambda h, w, b: (w - 0.5) ** 2,
    log_normalizer=lambda h, t: 0.0,
)


def sampler_for(alias, **arguments):
    tau = 0.1 if alias in ("evidence", "score_covariance") else 0.0
    return hs.SGLD(0.05, temperature=tau, **arguments)


SHORT = {
    "evidence": hs.estimators.Evidence(2, 5),
    "score_covariance": hs.estimators.ScoreCovariance(2, 5),
    "fmd": hs.estimators.FMD(6),
}


def solve(alias, problem, hypers, params, sampler=None, **arguments):
    return hs.hypergradient(
        problem,
        hypers,
        params,
        estimator=SHORT.get(alias, alias),
        sampler=sampler or sampler_for(alias),
        **arguments,
    )


@pytest.mark.parametrize("alias", ANY_START)
def test_one_tensor_may_be_two_hyperparameters(alias):
    same = tf.constant(0.1, tf.float64)
    other = [tf.constant(0.1, tf.float64) for _ in range(2)]
    start, sampler = tf.constant(0.0, tf.float64), sampler_for(alias)
    aliased = solve(alias, QUARTIC, [same] * 2, start, sampler)
    distinct = solve(alias, QUARTIC, other, start, sampler)
    assert distinct.hypergradient[0] != distinct.hypergradient[1]
    np.testing.assert_array_equal(aliased.hypergradient, distinct.hypergradient)


@pytest.mark.parametrize("alias", ["hpo_sgld", "adjoint_sgld", "rmd", "fmd"])
def test_tensor_that_an_objective_closes_over_is_a_constant(run, alias):
    anchor, sampler = tf.constant(0.3, tf.float64), hs.SGLD(0.05)

    def outer(h, w, b):
        return (w - 0.5) ** 2 + (h - anchor) ** 2 + anchor * h

    problem = hs.BilevelProblem(lambda h, w, b: (w - 1) ** 2 + h * w**2, outer)
    closed, copied = (
        run(lambda h=h: solve(alias, problem, h, np.float64(0.0), sampler))
        for h in (anchor, tf.constant(0.3, tf.float64))
    )
    np.testing.assert_array_equal(closed.hypergradient, copied.hypergradient)


@pytest.mark.parametrize(
    "of_hypers, of_params",
    [("float32", "float64"), ("float64", "float32"), ("float32", "bfloat16")],
)
@pytest.mark.parametrize("alias", ANY_START)
def test_hyperparameters_and_weights_may_differ_in_dtype(
    alias, of_hypers, of_params
):
    problem = hs.BilevelProblem(
        lambda h, w, b: (
            tf.reduce_sum((w - 1) ** 2)
            + tf.reduce_sum(tf.cast(h, w.dtype) * w**2)
        ),
        lambda h, w, b: tf.reduce_sum((w - 0.5) ** 2),
        log_normalizer=lambda h, t: -0.5 * tf.reduce_sum(tf.math.log(h)),
    )

    def estimate(of_hypers, of_params):
        return solve(
            alias,
            problem,
            tf.constant([0.1, 0.2], of_hypers),
            tf.constant([0.0, 0.3], of_params),
            sampler_for(alias, momentum=0.5),
        )

    mixed, wide = estimate(of_hypers, of_params), estimate("float64", "float64")
    assert mixed.hypergradient.dtype == of_hypers
    assert mixed.params.dtype == of_params
    if of_params != "bfloat16":
        np.testing.assert_allclose(
            mixed.hypergradient, wide.hypergradient, rtol=1e-3, atol=1e-4
        )
    else:
        assert np.all(np.isfinite(mixed.hypergradient))


def test_ift_is_independent_of_clipping(rng, run):
    ridge = problems.Ridge(rng)
    for clipping in ({"clipnorm": 0.3}, {"clipvalue": 0.2}):
        sampler = hs.SGLD(0.1, **clipping)
        estimate = run(
            lambda sampler=sampler: hs.hypergradient(
                ridge.problem,
                tf.constant(ridge.strengths),
                tf.constant(ridge.start),
                estimator=hs.estimators.IFTCG(20, tolerance=1e-13, num_steps=3),
                sampler=sampler,
            )
        )
        weights = estimate.params.numpy()
        adjoint = np.linalg.solve(
            ridge.inner_hessian(ridge.strengths), ridge.outer_gradient(weights)
        )
        np.testing.assert_allclose(
            estimate.hypergradient,
            0.6 * ridge.strengths - adjoint @ ridge.inner_mixed(weights),
            rtol=1e-8,
        )


@pytest.mark.parametrize("alias", ["ift_cg", "adjoint_sgld"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: hs.SGLD(0.05),
        lambda: hs.SGLD(0.03, momentum=0.6),
        lambda: keras.optimizers.SGD(0.04, momentum=0.5, nesterov=True),
    ],
)
def test_decay_is_a_penalty_in_the_stationary_estimators(rng, alias, make):
    # Where the chain stands still: grad L + (1 - mu) d = 0 for SGD.
    ridge, sampler = problems.Ridge(rng), hs.samplers.get(make())
    rate = 0.7
    decayed = hs.BilevelProblem(
        lambda h, w, b: ridge.inner(0.1 * ridge.strengths, w, None),
        lambda h, w, b: ridge.outer(ridge.strengths, w, None),
        decay=lambda h, w: rate * h * w,
    )
    share = rate * (1.0 - sampler.momentum)
    penalized = hs.BilevelProblem(
        lambda h, w, b: (
            ridge.inner(0.1 * ridge.strengths, w, None)
            + share * tf.reduce_sum(h * w**2) / 2
        ),
        decayed.outer_objective,
    )
    estimator = (
        hs.estimators.IFTCG(30, tolerance=1e-13, num_steps=1500)
        if alias == "ift_cg"
        else hs.estimators.AdjointSGLD(1500, 2)
    )
    results = [
        tf.function(
            lambda problem=problem: solve(
                estimator,
                problem,
                tf.constant(ridge.strengths),
                tf.constant(ridge.start),
                sampler,
            ),
            autograph=False,
        )()
        for problem in (decayed, penalized)
    ]
    np.testing.assert_allclose(results[0].params, results[1].params, rtol=1e-6)
    np.testing.assert_allclose(
        results[0].hypergradient, results[1].hypergradient, rtol=1e-5
    )


@pytest.mark.parametrize("alias", REGISTRY.aliases)
def test_previous_estimate_goes_on_where_it_ended(rng, alias):
    # One chain of 2 K steps, and two of K: the same path, noise included.
    if alias in ("first_order", "score_covariance"):
        pytest.skip("needs another problem; the path is that of any other")
    ridge = problems.Ridge(rng)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 5, 0.5)
    sampler = hs.SGLD(schedule, temperature=0.1, momentum=0.5)

    def chain(estimator, previous=None):
        return hs.hypergradient(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start) if previous is None else None,
            estimator=estimator,
            sampler=sampler,
            previous=previous,
            seed=3,
        )

    kind = REGISTRY.find(alias)
    sampled = "burn_in" in kind().get_config()
    arguments = dict(burn_in=3, num_samples=4) if sampled else dict(num_steps=7)
    whole = chain(hs.estimators.HPOSGLD(7, 7))
    second = chain(kind(**arguments), chain(kind(**arguments)))
    assert int(second.num_steps) == 14
    np.testing.assert_allclose(second.params, whole.params, rtol=1e-12)


@pytest.mark.parametrize("seed", [5, 5 + 2**32, 5 + 2**62])
def test_seed_of_64_bits_is_the_same_as_a_tensor(rng, seed):
    ridge = problems.Ridge(rng)

    def end(seed):
        return hs.hypergradient(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator=hs.estimators.HPOSGLD(0, 2),
            sampler=hs.SGLD(0.1, temperature=0.1),
            seed=seed,
        ).params

    np.testing.assert_array_equal(end(seed), end(tf.constant(seed, tf.int64)))
    assert np.all(end(seed) != end(tf.constant(seed + 2**33, tf.int64)))


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_previous_estimate_hands_on_what_the_estimator_keeps(rng, momentum):
    # The adjoint, and its velocity: the samples of two chains of K steps are
    # then those of one of 2 K.
    ridge = problems.Ridge(rng)
    sampler = hs.SGLD(0.05, temperature=0.1, momentum=momentum)

    def chain(num_samples, previous=None):
        return hs.hypergradient(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start) if previous is None else None,
            estimator=hs.estimators.AdjointSGLD(0, num_samples),
            sampler=sampler,
            previous=previous,
            seed=3,
        )

    whole, first = chain(12), chain(6)
    second = chain(6, previous=first)
    np.testing.assert_allclose(
        (first.hypergradient + second.hypergradient) / 2,
        whole.hypergradient,
        rtol=1e-9,
    )


def test_outer_loop_with_previous_finds_the_best_strength():
    # The loop of a user: no internals, plain tensors.
    strength, estimate = tf.Variable(0.0), None
    optimizer = keras.optimizers.Adam(0.05)
    problem = hs.BilevelProblem(
        lambda s, w, b: (w - 1.0) ** 2 + tf.exp(s) * w**2,
        lambda s, w, b: (w - 0.25) ** 2,
    )
    for _ in range(150):
        estimate = hs.hypergradient(
            problem,
            tf.convert_to_tensor(strength),
            0.0 if estimate is None else None,
            estimator=hs.estimators.AdjointSGLD(0, 2),
            sampler=SAMPLER,
            previous=estimate,
        )
        optimizer.apply([estimate.hypergradient], [strength])
    np.testing.assert_allclose(np.exp(strength), 3.0, rtol=0.02)


SAMPLER = hs.SGLD(0.1)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("alias", ["hpo_sgld", "adjoint_sgld", "rmd", "ift_cg"])
def test_too_few_batches_of_unknown_number_give_no_number(alias, compiled):
    problem = hs.BilevelProblem(
        lambda h, w, b: (w - b) ** 2 + h * w**2,
        lambda h, w, b: (w - 0.5) ** 2,
    )
    sampler = hs.SGLD(0.05)

    @tf.function(
        autograph=False,
        jit_compile=compiled,
        input_signature=[tf.TensorSpec([None], tf.float32)],
    )
    def estimate(batches):
        return solve(
            alias, problem, 0.1, 0.0, sampler, inner_batches=batches
        ).hypergradient

    assert np.isfinite(estimate(tf.ones([20])))
    for number in (0, 3, 19):
        if compiled:
            assert np.isnan(estimate(tf.ones([number])))
            continue
        message = "`inner_batches` must have a leading axis of at least 20"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            estimate(tf.ones([number]))


@pytest.mark.parametrize("alias", ["hpo_sgld", "rmd", "fmd"])
def test_a_tape_around_it_sees_a_constant(alias):
    # Recorded, each step would stay in memory: 200 steps of 200 000 weights
    # took 6 GiB.
    strength = tf.constant([0.1])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(strength)
        estimate = solve(
            alias,
            hs.BilevelProblem(
                lambda h, w, b: tf.reduce_sum((w - 1) ** 2 + h * w**2),
                lambda h, w, b: tf.reduce_sum((w - 0.5) ** 2),
            ),
            strength,
            tf.zeros([5]),
        )
    assert tape.gradient(estimate.hypergradient, strength) is None
    assert tape.gradient(estimate.params, strength) is None
    assert float(estimate.hypergradient[0]) != 0.0


@dataclasses.dataclass
class Weights:
    values: tf.Tensor


@pytest.mark.parametrize(
    "params, message",
    [
        ([], "`params` must hold at least one tensor"),
        ({}, "`params` must hold at least one tensor"),
        (Weights(tf.zeros([2])), "`params` must be a structure"),
        (tf.ragged.constant([[1.0], [2.0, 3.0]]), "`params` must be a struct"),
        (["a"], "`params` must"),
        (None, "`params` must be given"),
    ],
)
def test_params_that_are_no_structure_of_tensors_are_named(params, message):
    with pytest.raises((ValueError, TypeError), match=message):
        solve("hpo_sgld", QUARTIC, [0.1, 0.2], params)


def test_numbers_of_numpy_and_python_are_taken_alike():
    first, second, third = (
        solve("rmd", QUARTIC, [one, 1.0], 0.5)
        for one in (1, np.int64(1), np.float32(1.0))
    )
    assert float(first.hypergradient[0]) == float(second.hypergradient[0])
    assert float(first.hypergradient[0]) == float(third.hypergradient[0])


@pytest.mark.parametrize(
    "arguments",
    [
        dict(num_samples=None),
        dict(num_samples=float("inf")),
        dict(num_samples="3"),
        dict(burn_in=float("nan")),
        dict(burn_in=True),
    ],
)
@pytest.mark.parametrize("alias", ["hpo_sgld", "adjoint_sgld"])
def test_counts_that_are_none_give_a_value_error(alias, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        REGISTRY.find(alias)(**arguments)


def test_float_counts_without_a_fraction_are_counts():
    assert (
        hs.estimators.RMD(truncation=2.0, num_steps=4.0).num_closing_steps == 2
    )
    estimate = solve(
        hs.estimators.RMD(truncation=2.0, num_steps=4.0),
        QUARTIC,
        [0.1, 0.2],
        0.0,
    )
    assert np.isfinite(estimate.hypergradient[0])


def test_seeds_of_64_bits_in_any_form_are_told_apart():
    sampler = hs.SGLD(0.1, temperature=0.1)
    seeds = (5, 2**32 + 5, tf.constant(6), tf.constant(2**40, tf.int64))
    seeds += (tf.constant([5, 9]),)
    found = {
        float(solve("rmd", QUARTIC, [0.1, 0.2], 0.0, sampler, seed=s).params)
        for s in seeds
    }
    assert len(found) == len(seeds)
    with pytest.raises(ValueError, match="`seed` must be"):
        solve("rmd", QUARTIC, [0.1, 0.2], 0.0, sampler, seed=-1)
