"""HPO-SGLD against the paper's equations, computed in NumPy."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs


def estimate(problem, hyperparameters, params, **arguments):
    return hs.hypergradient(problem, hyperparameters, params, **arguments)


@pytest.mark.parametrize("burn_in, num_samples", [(0, 1), (3, 4), (7, 2)])
def test_hypergradient_is_the_papers_recursion(rng, run, burn_in, num_samples):
    ridge = problems.Ridge(rng)
    num_steps = burn_in + num_samples
    expected, end, _ = ridge.paper_recursion(
        ridge.strengths,
        ridge.start,
        learning_rates=[0.07] * num_steps,
        burn_in=burn_in,
    )
    sampler = hs.SGLD(0.07)
    result = run(
        lambda strengths, start: estimate(
            ridge.problem,
            strengths,
            start,
            estimator=hs.estimators.HPOSGLD(burn_in, num_samples),
            sampler=sampler,
        ),
        tf.constant(ridge.strengths),
        tf.constant(ridge.start),
    )
    np.testing.assert_allclose(result.hypergradient, expected, rtol=1e-10)
    np.testing.assert_allclose(result.params, end, rtol=1e-10)
    assert result.hypergradient.dtype == tf.float64


def test_every_g_is_the_papers(rng):
    # h of a chain with one sample is df/dlambda + g_m at its last step.
    ridge = problems.Ridge(rng)
    _, _, all_g = ridge.paper_recursion(
        ridge.strengths, ridge.start, learning_rates=[0.07] * 6, burn_in=0
    )
    for m, g in enumerate(all_g):
        result = estimate(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator=hs.estimators.HPOSGLD(burn_in=m, num_samples=1),
            sampler=hs.SGLD(0.07),
        )
        np.testing.assert_allclose(
            result.hypergradient - 0.6 * ridge.strengths, g, rtol=1e-10
        )


def test_batches_and_schedule_are_followed_step_by_step(rng, run):
    ridge = problems.Ridge(rng)
    num_steps = 5
    inner = rng.normal(size=(num_steps, 8, 4)), rng.normal(size=(num_steps, 8))
    outer = rng.normal(size=(num_steps, 6, 4)), rng.normal(size=(num_steps, 6))
    # Powers of two are exact in the float32 that Keras's schedules work in.
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [0, 2], [0.125, 0.0625, 0.03125]
    )
    expected, end, _ = ridge.paper_recursion(
        ridge.strengths,
        ridge.start,
        learning_rates=[0.125, 0.0625, 0.0625, 0.03125, 0.03125],
        burn_in=2,
        inner_batches=inner,
        outer_batches=outer,
    )
    sampler = hs.SGLD(schedule)
    result = run(
        lambda: estimate(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator=hs.estimators.HPOSGLD(2, 3),
            sampler=sampler,
            inner_batches=inner,
            outer_batches=outer,
        )
    )
    np.testing.assert_allclose(result.hypergradient, expected, rtol=1e-10)
    np.testing.assert_allclose(result.params, end, rtol=1e-10)


@pytest.mark.parametrize("curvature", ["paper", "telescoped"])
@pytest.mark.parametrize("start", ["identity", "linear"])
def test_start_that_depends_on_hyperparameters(rng, run, curvature, start):
    ridge = problems.Ridge(rng)
    jacobian = np.eye(4) if start == "identity" else rng.normal(size=(4, 4))
    weights = jacobian @ ridge.strengths
    expected, end, _ = ridge.paper_recursion(
        ridge.strengths,
        weights,
        learning_rates=[0.05] * 7,
        burn_in=2,
        start_jacobian=jacobian,
        curvature=curvature,
    )

    def initial_params(strengths):
        if start == "identity":
            return strengths
        return tf.linalg.matvec(jacobian, strengths)

    sampler = hs.SGLD(0.05)
    result = run(
        lambda strengths: estimate(
            hs.BilevelProblem(ridge.inner, ridge.outer, initial_params),
            strengths,
            None,
            estimator=hs.estimators.HPOSGLD(2, 5, curvature),
            sampler=sampler,
        ),
        tf.constant(ridge.strengths),
    )
    np.testing.assert_allclose(result.hypergradient, expected, rtol=1e-10)
    np.testing.assert_allclose(result.params, end, rtol=1e-10)


@pytest.mark.parametrize("curvature", ["paper", "telescoped"])
def test_unrolled_differentiation_agrees_to_first_order(rng, curvature):
    # With D0 the identity, the recursion drops terms of order alpha**2 a step:
    # over a fixed number of steps, relative to the exact derivative of the
    # unrolled chain, its error must fall with alpha (faster than linearly).
    ridge = problems.Ridge(rng)
    problem = hs.BilevelProblem(ridge.inner, ridge.outer, lambda w: w)
    start = tf.constant(ridge.start)

    def unrolled(alpha):
        with tf.GradientTape() as outer_tape:
            outer_tape.watch(start)
            weights, total = start, 0.0
            for step in range(6):
                with tf.GradientTape() as tape:
                    tape.watch(weights)
                    loss = ridge.inner(start, weights, None)
                weights = weights - alpha * tape.gradient(loss, weights)
                if step >= 2:
                    total += ridge.outer(start, weights, None) / 4
        return outer_tape.gradient(total, start).numpy()

    def error(alpha):
        result = estimate(
            problem,
            start,
            None,
            estimator=hs.estimators.HPOSGLD(2, 4, curvature),
            sampler=hs.SGLD(alpha),
        )
        return np.linalg.norm(result.hypergradient - unrolled(alpha))

    errors = [error(alpha) for alpha in (4e-4, 2e-4, 1e-4)]
    assert errors[0] > 0
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.all(orders > 0.95), orders
    assert errors[-1] < 1e-3 * np.linalg.norm(unrolled(1e-4))


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("temperature, noise_scale", [(0.3, 1.0), (0.8, 0.5)])
def test_noisy_chain_has_the_expected_hypergradient(
    run, noise, temperature, noise_scale
):
    # Many independent chains on 0.5 * strength * w**2, each an AR(1) process,
    # with the outer objective 0.5 * w**2: there v_m = w_m and the mixed
    # derivative is w_{m-1}, so E[g_m] = -alpha * sum of E[w_i w_{i-1}].
    strength, alpha, start = 1.3, 0.1, 0.7
    burn_in, num_samples, num_chains = 4, 6, 200_000
    decay = 1 - alpha * strength
    added = 2 * alpha * temperature * noise_scale**2
    means, variances = problems.autoregression_moments(
        decay, added, start, burn_in + num_samples
    )
    products = decay * (variances[:-1] + means[:-1] ** 2)
    g = -alpha * np.cumsum(products)
    expected = g[burn_in:].mean()

    problem = hs.BilevelProblem(
        lambda strengths, w, batch: tf.reduce_sum(0.5 * strengths * w**2),
        lambda strengths, w, batch: tf.reduce_sum(0.5 * w**2),
    )
    sampler = hs.SGLD(
        alpha, temperature=temperature, noise_scale=noise_scale, noise=noise
    )
    result = run(
        lambda: estimate(
            problem,
            tf.fill([num_chains], tf.constant(strength, tf.float64)),
            tf.fill([num_chains], tf.constant(start, tf.float64)),
            estimator=hs.estimators.HPOSGLD(burn_in, num_samples),
            sampler=sampler,
            seed=3,
        )
    )
    draws = result.hypergradient.numpy()
    standard_error = draws.std() / np.sqrt(num_chains)
    assert abs(draws.mean() - expected) < 4 * standard_error
    ends = result.params.numpy()
    assert abs(ends.mean() - means[-1]) < 4 * np.sqrt(
        variances[-1] / num_chains
    )
    # The variance's own standard error, from the fourth moment.
    deviations = (ends - ends.mean()) ** 2
    assert abs(deviations.mean() - variances[-1]) < 4 * (
        deviations.std() / np.sqrt(num_chains)
    )


def test_clipping_is_part_of_the_step_and_of_its_derivative(rng, run):
    # With `clipvalue` an entry of the gradient that is cut off neither moves
    # further nor depends on the strengths any more.
    ridge = problems.Ridge(rng)
    alpha, limit = 0.07, 0.8
    weights, g, h, was_clipped = ridge.start, 0.0, 0.0, False
    for m in range(1, 6):
        gradient = ridge.inner_gradient(ridge.strengths, weights)
        inside = np.abs(gradient) <= limit
        was_clipped |= not np.all(inside)
        mixed = inside[:, None] * ridge.inner_mixed(weights)
        weights = weights - alpha * np.clip(gradient, -limit, limit)
        g = g - alpha * ridge.outer_gradient(weights) @ mixed
        h = h + (m > 2) * (0.6 * ridge.strengths + g) / 3
    assert was_clipped
    sampler = hs.SGLD(alpha, clipvalue=limit)
    result = run(
        lambda: estimate(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator=hs.estimators.HPOSGLD(2, 3),
            sampler=sampler,
        )
    )
    np.testing.assert_allclose(result.params, weights, rtol=1e-10)
    np.testing.assert_allclose(result.hypergradient, h, rtol=1e-10)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
def test_noise_is_the_same_in_every_mode(rng, run, noise):
    ridge = problems.Ridge(rng)
    sampler = hs.SGLD(0.05, temperature=0.2, noise=noise)

    def noisy():
        return estimate(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator=hs.estimators.HPOSGLD(2, 3),
            sampler=sampler,
            seed=5,
        ).hypergradient

    np.testing.assert_allclose(run(noisy), noisy(), rtol=1e-10)


def test_equal_seeds_give_equal_chains_and_others_do_not(rng):
    ridge = problems.Ridge(rng)

    def end(seed):
        return estimate(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator="hpo_sgld",
            sampler=hs.SGLD(0.05, temperature=0.1),
            seed=seed,
        ).params.numpy()

    np.testing.assert_array_equal(end(1), end(1))
    assert np.all(end(1) != end(2))
    np.testing.assert_array_equal(end(3), end(tf.constant([3, 0])))


def test_losses_are_means_over_the_samples(rng):
    ridge = problems.Ridge(rng)
    weights, outer, inner = ridge.start, [], []
    for _ in range(6):
        inner.append(float(ridge.inner(ridge.strengths, weights, None)))
        weights = weights - 0.05 * ridge.inner_gradient(
            ridge.strengths, weights
        )
        outer.append(ridge.outer_value(ridge.strengths, weights))
    result = estimate(
        ridge.problem,
        tf.constant(ridge.strengths),
        tf.constant(ridge.start),
        estimator=hs.estimators.HPOSGLD(2, 4),
        sampler=hs.SGLD(0.05),
    )
    np.testing.assert_allclose(result.inner_loss, np.mean(inner[2:]))
    np.testing.assert_allclose(result.outer_loss, np.mean(outer[2:]))


def test_structures_and_dtypes_come_back_as_they_went_in(run):
    problem = hs.BilevelProblem(
        lambda h, p, batch: (
            tf.reduce_sum(p["a"] ** 2 * h[0])
            + h[1]["b"] * tf.reduce_sum(p["c"] ** 2)
        ),
        lambda h, p, batch: tf.reduce_sum(p["a"]) + tf.reduce_sum(p["c"]),
    )
    hyperparameters = (tf.ones([2, 3]), {"b": tf.constant(2.0)})
    params = {"a": tf.ones([2, 3]), "c": tf.ones([4])}
    sampler = hs.SGLD(0.1)
    result = run(
        lambda: estimate(
            problem,
            hyperparameters,
            params,
            estimator=hs.estimators.HPOSGLD(1, 2),
            sampler=sampler,
        )
    )
    tf.nest.assert_same_structure(result.hypergradient, hyperparameters)
    tf.nest.assert_same_structure(result.params, params)
    for new, old in zip(
        tf.nest.flatten([result.hypergradient, result.params]),
        tf.nest.flatten([hyperparameters, params]),
        strict=True,
    ):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)


def test_hyperparameter_that_nothing_depends_on_gets_zero():
    problem = hs.BilevelProblem(
        lambda h, w, batch: (w - h[0]) ** 2, lambda h, w, batch: w**2
    )
    with pytest.warns(UserWarning, match="is zero for .*: number 1"):
        result = estimate(
            problem,
            [tf.constant(1.0), tf.constant([1.0, 2.0])],
            tf.constant(0.5),
            estimator=hs.estimators.HPOSGLD(1, 2),
            sampler=hs.SGLD(0.1),
        )
    assert float(result.hypergradient[0]) != 0
    np.testing.assert_array_equal(result.hypergradient[1], [0.0, 0.0])


def test_carry_goes_from_step_to_step(run):
    # The inner objective scales with a counter that it advances itself.
    def inner(strength, weight, batch, carry):
        return carry * strength * weight, carry + 1.0

    seen = hs.BilevelProblem(
        inner,
        lambda strength, weight, batch, carry: weight * carry,
        initial_carry=tf.constant(1.0),
    )
    sampler = hs.SGLD(0.5)
    result = run(
        lambda: estimate(
            seen,
            tf.constant(2.0),
            tf.constant(0.0),
            estimator=hs.estimators.HPOSGLD(1, 2),
            sampler=sampler,
        )
    )
    # Steps of 0.5 * carry * 2: weights -1, -3, -6; the outer objective sees
    # the carry after the step: 2, 3, 4. g_m = -0.5 * sum of v_i * carry_i.
    assert float(result.params) == -6.0
    assert float(result.carry) == 4.0
    assert float(result.outer_loss) == (-3 * 3 - 6 * 4) / 2
    g = -0.5 * np.cumsum([2 * 1, 3 * 2, 4 * 3])
    assert float(result.hypergradient) == g[1:].mean()


def test_chain_is_one_loop_whose_graph_does_not_grow(rng):
    ridge = problems.Ridge(rng)
    sampler = hs.SGLD(0.05, temperature=0.1)

    def num_nodes(num_samples):
        @tf.function(autograph=False)
        def graph():
            return estimate(
                ridge.problem,
                tf.constant(ridge.strengths),
                tf.constant(ridge.start),
                estimator=hs.estimators.HPOSGLD(0, num_samples),
                sampler=sampler,
            )

        definition = graph.get_concrete_function().graph.as_graph_def()
        return len(definition.node) + sum(
            len(f.node_def) for f in definition.library.function
        )

    assert num_nodes(5) == num_nodes(500)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"burn_in": -1}, "`burn_in` must be at least 0"),
        ({"burn_in": float("nan")}, "`burn_in` must be an integer"),
        ({"num_samples": 0}, "`num_samples` must be at least 1"),
        ({"num_samples": 2.5}, "`num_samples` must be an integer"),
        ({"curvature": "exact"}, "`curvature` must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        hs.estimators.HPOSGLD(**arguments)
    ((name, value),) = arguments.items()
    assert f"Received: {name}={value!r}" in str(error.value)


def test_too_few_batches_are_refused(rng):
    ridge = problems.Ridge(rng)
    with pytest.raises(ValueError, match="`outer_batches` must have .* 5, one"):
        estimate(
            ridge.problem,
            tf.constant(ridge.strengths),
            tf.constant(ridge.start),
            estimator=hs.estimators.HPOSGLD(2, 3),
            sampler=hs.SGLD(0.1),
            outer_batches=(rng.normal(size=(4, 6, 4)), np.ones((4, 6))),
        )


def test_bad_problems_are_refused():
    def scalar(h, w, batch):
        return tf.reduce_sum(h * w)

    def solve(problem, hyperparameters=1.0, params=1.0):
        return estimate(problem, hyperparameters, params, sampler=hs.SGLD(0.1))

    for name in ("inner_objective", "outer_objective"):
        given = {"inner_objective": scalar, "outer_objective": scalar, name: 2}
        with pytest.raises(TypeError, match=f"`{name}` must be a function"):
            hs.BilevelProblem(**given)
    with pytest.raises(TypeError, match="`inner_objective` must be a function"):
        hs.BilevelProblem(None, scalar)
    for name in ("log_normalizer", "curvature"):
        with pytest.raises(
            TypeError, match=f"`{name}` must be .* or None. Rec"
        ):
            hs.BilevelProblem(scalar, **{name: 2})
    with pytest.raises(TypeError, match="`initial_params` must be a function"):
        hs.BilevelProblem(scalar, scalar, tf.constant(1.0))
    with pytest.raises(ValueError, match="`inner_objective` must return a sc"):
        solve(hs.BilevelProblem(lambda h, w, b: h * w, scalar), params=[1.0])
    with pytest.raises(ValueError, match="`params` must be given"):
        solve(hs.BilevelProblem(scalar, scalar), params=None)
    with pytest.raises(TypeError, match="`hyperparameters` must hold fl.*int"):
        solve(hs.BilevelProblem(scalar, scalar), tf.constant(1))
    with pytest.raises(TypeError, match="`params` must hold floating"):
        solve(hs.BilevelProblem(scalar, scalar), params=tf.constant(1))
    with pytest.raises(TypeError, match="`sampler` must be a"):
        estimate(
            hs.BilevelProblem(scalar, scalar),
            1,
            1,
            sampler=0.1,
        )
    with pytest.raises(ValueError, match="`hyperparameters` must hold"):
        solve(hs.BilevelProblem(scalar, scalar), hyperparameters=[])
