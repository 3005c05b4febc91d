"""What every member of the registry must do. A new one joins by one import."""

import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.estimators.registry import REGISTRY

# Arguments with which an estimator has converged on ridge regression, and
# others that are not the defaults, for a short chain.
CONVERGED = {
    "adjoint_sgld": dict(burn_in=1500, num_samples=5),
    "fmd": dict(num_steps=400),
    "ift_cg": dict(num_steps=1500, max_iterations=50, tolerance=1e-12),
    "ift_neumann": dict(num_steps=1500, num_terms=2000),
    "rmd": dict(num_steps=1500),
}
SHORT = {
    "adjoint_sgld": dict(
        burn_in=2,
        num_samples=3,
        warm_start=False,
        outer_every=2,
        hessian_product="difference",
    ),
    "evidence": dict(burn_in=2, num_samples=4),
    "first_order": dict(num_steps=5),
    "fmd": dict(num_steps=5, max_hyperparameters=50),
    "hpo_sgld": dict(
        burn_in=2, num_samples=3, curvature="telescoped", outer_every=2
    ),
    "ift_cg": dict(num_steps=5, max_iterations=3, damping=0.1, tolerance=0.0),
    "ift_neumann": dict(num_steps=5, num_terms=4, step_size=0.05),
    "rmd": dict(num_steps=5, truncation=3),
    "rmd_fo": dict(num_steps=5),
    "score_covariance": dict(burn_in=2, num_samples=4),
}
BAD = {
    "adjoint_sgld": [
        dict(burn_in=-1),
        dict(num_samples=0),
        dict(outer_every=0),
        dict(hessian_product="central"),
    ],
    "evidence": [dict(burn_in=-1), dict(num_samples=0)],
    "first_order": [dict(num_steps=0)],
    "fmd": [dict(num_steps=0), dict(max_hyperparameters=0)],
    "hpo_sgld": [
        dict(burn_in=-1),
        dict(num_samples=0),
        dict(outer_every=0),
    ],
    "ift_cg": [
        dict(num_steps=0),
        dict(max_iterations=0),
        dict(damping=-0.1),
        dict(tolerance=float("nan")),
    ],
    "ift_neumann": [
        dict(num_steps=1.5),
        dict(num_terms=0),
        dict(step_size=0.0),
    ],
    "rmd": [dict(num_steps=0), dict(truncation=0), dict(truncation=21)],
    "rmd_fo": [dict(num_steps=-2)],
    "score_covariance": [dict(burn_in=-1), dict(num_samples=1)],
}
ALL = REGISTRY.aliases
# Those of a law, which has a temperature.
NOISY = ("evidence", "score_covariance")
# Those which need no start that is a function of the hyperparameters.
ANY_START = [alias for alias in ALL if alias != "first_order"]


def make(alias, arguments=SHORT):
    return REGISTRY.find(alias)(**arguments[alias])


def sampler_for(alias, learning_rate=0.05):
    return hs.SGLD(learning_rate, temperature=0.2 if alias in NOISY else 0.0)


def constant(hypers, temperature):
    """The log normalizer of a prior without hyperparameters."""
    return 0.0


def solve(alias, problem, strengths, start, sampler=None, **arguments):
    return hs.hypergradient(
        problem,
        strengths,
        start,
        estimator=make(alias),
        sampler=sampler or sampler_for(alias),
        **arguments,
    )


def test_every_member_is_listed_here():
    assert ALL == sorted(SHORT) == sorted(BAD)
    assert set(ALL) == {
        "adjoint_sgld",
        "evidence",
        "first_order",
        "fmd",
        "hpo_sgld",
        "ift_cg",
        "ift_neumann",
        "rmd",
        "rmd_fo",
        "score_covariance",
    }


@pytest.mark.parametrize(
    "alias",
    [
        pytest.param(alias, marks=pytest.mark.slow if alias == "fmd" else [])
        for alias in sorted(CONVERGED)
    ],
)
def test_converged_estimate_is_the_closed_form(rng, alias):
    ridge = problems.Ridge(rng, num_features=100, num_inner=300)
    estimate = tf.function(
        lambda: hs.hypergradient(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator=make(alias, CONVERGED),
            sampler=SAMPLER,
        ),
        autograph=False,
    )()
    np.testing.assert_allclose(
        estimate.hypergradient,
        ridge.exact_hypergradient(ridge.strengths),
        rtol=1e-5,
        atol=1e-9,
    )
    if estimate.residual is not None:
        assert float(estimate.residual) < 1e-8


SAMPLER = hs.SGLD(0.1)


@pytest.mark.parametrize("alias", ANY_START)
def test_all_modes_agree(rng, run, alias):
    ridge = problems.Ridge(rng)
    batches = rng.normal(size=(6, 8, 4)), rng.normal(size=(6, 8))
    sampler = sampler_for(alias)

    def estimate():
        result = solve(
            alias,
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            sampler,
            inner_batches=batches,
            outer_batches=batches,
            seed=4,
        )
        return result.hypergradient, result.params

    for value, eager in zip(run(estimate), estimate(), strict=True):
        np.testing.assert_allclose(value, eager, rtol=1e-9)


@pytest.mark.parametrize("alias", ANY_START)
def test_second_call_does_not_trace_again(rng, alias):
    ridge, traces, sampler = problems.Ridge(rng), [], sampler_for(alias)

    @tf.function(autograph=False)
    def estimate(strengths, start, seed):
        traces.append(1)
        return solve(alias, ridge.problem, strengths, start, sampler, seed=seed)

    for seed in range(3):
        estimate(
            tf.constant(ridge.strengths + seed),
            tf.constant(ridge.start),
            tf.constant(seed),
        )
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alias", ANY_START)
def test_structure_shapes_and_dtype_are_kept(alias, dtype):
    problem = hs.BilevelProblem(
        lambda h, p, batch: (
            tf.reduce_sum(p["a"] ** 2 * h[0])
            + h[1]["b"] * tf.reduce_sum(p["c"] ** 2)
            + tf.reduce_sum(p["a"] - 1) ** 2
        ),
        lambda h, p, batch: tf.reduce_sum(p["a"]) + tf.reduce_sum(p["c"]),
        log_normalizer=constant,
    )
    hyperparameters = (
        tf.ones([2, 3], dtype),
        {"b": tf.constant(2.0, dtype)},
    )
    params = {"a": tf.ones([2, 3], dtype), "c": tf.ones([4], dtype)}
    result = solve(alias, problem, hyperparameters, params)
    for new, old in (
        (result.hypergradient, hyperparameters),
        (result.params, params),
    ):
        tf.nest.assert_same_structure(new, old)
        for x, y in zip(
            tf.nest.flatten(new), tf.nest.flatten(old), strict=True
        ):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("alias", ANY_START)
def test_unused_hyperparameter_gets_zero_and_is_reported(alias):
    problem = hs.BilevelProblem(
        lambda h, w, batch: (w - h[0]) ** 2,
        lambda h, w, batch: w**2,
        log_normalizer=constant,
    )
    hyperparameters = [tf.constant(1.0), tf.constant([1.0, 2.0])]
    with pytest.warns(UserWarning, match="depends on: number 1."):
        result = solve(alias, problem, hyperparameters, tf.constant(0.5))
    assert float(result.hypergradient[0]) != 0
    np.testing.assert_array_equal(result.hypergradient[1], [0.0, 0.0])


@pytest.mark.parametrize("alias", ANY_START)
def test_used_hyperparameters_are_not_reported(rng, alias, recwarn):
    ridge = problems.Ridge(rng)
    solve(
        alias,
        ridge.problem,
        tf.constant(ridge.strengths),
        tf.constant(ridge.start),
    )
    assert not [w for w in recwarn if "depends on" in str(w.message)]


@pytest.mark.parametrize("alias", ANY_START)
def test_carry_and_losses_are_handed_on(alias):
    problem = hs.BilevelProblem(
        lambda h, w, batch, carry: (h * (w - 1.0) ** 2, carry + 1.0),
        lambda h, w, batch, carry: (w + h) ** 2,
        initial_carry=tf.constant(0.0),
        log_normalizer=constant,
    )
    estimator = make(alias)
    result = solve(alias, problem, tf.constant(1.0), tf.constant(0.5))
    assert float(result.carry) == estimator.num_steps
    assert float(result.inner_loss) > 0
    if estimator.needs_outer:
        assert float(result.outer_loss) > 0
    else:
        assert result.outer_loss is None and result.outer_losses is None


@pytest.mark.parametrize("alias", ALL)
def test_no_outer_objective_is_needed_or_refused(rng, alias):
    ridge = problems.Ridge(rng)
    problem = hs.BilevelProblem(
        ridge.inner, log_normalizer=ridge.log_normalizer
    )
    at = tf.constant(ridge.strengths), tf.constant(ridge.start)
    if not make(alias).needs_outer:
        result = solve(alias, problem, *at)
        judged = solve(alias, ridge.problem, *at)
        np.testing.assert_array_equal(
            result.hypergradient, judged.hypergradient
        )
        return
    with pytest.raises(ValueError, match="an `outer_objective`, which") as e:
        solve(alias, problem, *at)
    assert type(make(alias)).__name__ in str(e.value)
    assert "Received: outer_objective=None" in str(e.value)


@pytest.mark.parametrize("alias", ALL)
def test_config_round_trip(alias):
    estimator = make(alias)
    copy = hs.estimators.deserialize(hs.estimators.serialize(estimator))
    assert type(copy) is type(estimator)
    assert copy.get_config() == estimator.get_config()
    assert copy.num_steps == estimator.num_steps
    assert set(SHORT[alias].items()) <= set(copy.get_config().items())
    assert type(hs.estimators.get(alias)) is type(estimator)


@pytest.mark.parametrize(
    "alias, arguments", [(alias, one) for alias in ALL for one in BAD[alias]]
)
def test_bad_arguments_are_named(alias, arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` must be") as error:
        REGISTRY.find(alias)(**arguments)
    assert f"{name}=" in str(error.value).split("Received:")[1]


def unrolled(ridge, strengths, start, num_steps, alpha, jacobian=None):
    """Exact derivative of the outer objective after unrolled steps."""
    weights = start
    total = np.zeros((4, 4)) if jacobian is None else jacobian
    for _ in range(num_steps):
        total = total - alpha * (
            ridge.inner_hessian(strengths) @ total + ridge.inner_mixed(weights)
        )
        weights = weights - alpha * ridge.inner_gradient(strengths, weights)
    return 0.6 * strengths + ridge.outer_gradient(weights) @ total


@pytest.mark.parametrize("moving_start", [False, True])
@pytest.mark.parametrize("alias", ["rmd", "fmd"])
def test_unrolling_is_exact_for_any_number_of_steps(
    rng, run, alias, moving_start
):
    ridge = problems.Ridge(rng)
    jacobian = rng.normal(size=(4, 4)) if moving_start else None
    start = jacobian @ ridge.strengths if moving_start else ridge.start
    problem = ridge.problem
    if moving_start:
        problem = hs.BilevelProblem(
            ridge.inner, ridge.outer, lambda s: tf.linalg.matvec(jacobian, s)
        )
    sampler = hs.SGLD(0.07)
    estimate = run(
        lambda: hs.hypergradient(
            problem,
            tf.constant(ridge.strengths),
            tf.constant(start),
            estimator=REGISTRY.find(alias)(num_steps=6),
            sampler=sampler,
        )
    )
    np.testing.assert_allclose(
        estimate.hypergradient,
        unrolled(ridge, ridge.strengths, start, 6, 0.07, jacobian),
        rtol=1e-10,
    )


def test_first_order_takes_the_steps_for_the_identity(rng, run):
    ridge = problems.Ridge(rng)
    jacobian = rng.normal(size=(4, 4))
    problem = hs.BilevelProblem(
        ridge.inner, ridge.outer, lambda s: tf.linalg.matvec(jacobian, s)
    )
    weights = jacobian @ ridge.strengths
    for _ in range(6):
        weights = weights - 0.07 * ridge.inner_gradient(
            ridge.strengths, weights
        )
    sampler = hs.SGLD(0.07)
    estimate = run(
        lambda: hs.hypergradient(
            problem,
            tf.constant(ridge.strengths),
            estimator=hs.estimators.FirstOrder(num_steps=6),
            sampler=sampler,
        )
    )
    np.testing.assert_allclose(
        estimate.hypergradient,
        0.6 * ridge.strengths + ridge.outer_gradient(weights) @ jacobian,
        rtol=1e-10,
    )
    with pytest.raises(ValueError, match="needs a problem with `initial_par"):
        solve("first_order", ridge.problem, ridge.strengths, ridge.start)


def test_truncation_walks_back_the_last_steps_only(rng, run):
    # Truncated to K steps, the chain starts K steps before its end.
    ridge = problems.Ridge(rng)
    weights = ridge.start
    for _ in range(4):
        weights = weights - 0.07 * ridge.inner_gradient(
            ridge.strengths, weights
        )
    sampler = hs.SGLD(0.07)
    for estimator, kept in (
        (hs.estimators.RMD(truncation=3, num_steps=7), 3),
        (hs.estimators.RMDFO(num_steps=5), 1),
    ):
        estimate = run(
            lambda estimator=estimator: hs.hypergradient(
                ridge.problem,
                tf.constant(ridge.strengths),
                tf.constant(ridge.start),
                estimator=estimator,
                sampler=sampler,
            )
        )
        np.testing.assert_allclose(
            estimate.hypergradient,
            unrolled(ridge, ridge.strengths, weights, kept, 0.07),
            rtol=1e-10,
        )


def test_estimators_refuse_what_they_cannot_serve(rng):
    ridge = problems.Ridge(rng)
    maml = hs.BilevelProblem(
        lambda h, w, batch: ridge.inner(ridge.strengths, w, None),
        lambda h, w, batch: ridge.outer(ridge.strengths, w, None),
        lambda h: h,
    )
    start = tf.constant(ridge.start)
    for alias in ("adjoint_sgld", *NOISY):
        with pytest.raises(ValueError, match="cannot serve a problem with"):
            solve(alias, maml, start, None)
    for alias in ("ift_cg", "ift_neumann"):
        with pytest.raises(ValueError, match="would return zero for every"):
            solve(alias, maml, start, None)
    for alias in NOISY:
        with pytest.raises(ValueError, match="needs a temperature above 0"):
            solve(alias, ridge.problem, start, start, hs.SGLD(0.1))
    with pytest.raises(ValueError, match="4 hyperparameters, which would"):
        hs.hypergradient(
            ridge.problem,
            start,
            start,
            estimator=hs.estimators.FMD(max_hyperparameters=3),
            sampler=SAMPLER,
        )


def test_implicit_maml_is_served_by_ift(rng):
    # With a pull to the start in the inner objective, the start matters.
    ridge = problems.Ridge(rng)
    pull = 0.7

    def inner(initial, weights, batch):
        return ridge.inner(ridge.strengths, weights, None) + (
            pull * tf.reduce_sum((weights - initial) ** 2)
        )

    estimate = hs.hypergradient(
        hs.BilevelProblem(
            inner,
            lambda h, w, batch: ridge.outer(ridge.strengths, w, None),
            lambda initial: initial,
        ),
        tf.constant(ridge.start),
        estimator=hs.estimators.IFTCG(20, tolerance=1e-12, num_steps=500),
        sampler=SAMPLER,
    )
    hessian = ridge.inner_hessian(ridge.strengths) + 2 * pull * np.eye(4)
    v = ridge.outer_gradient(estimate.params.numpy())
    np.testing.assert_allclose(
        estimate.hypergradient,
        2 * pull * np.linalg.solve(hessian, v),
        rtol=1e-8,
    )
