"""AdjointSGLD: its pairing, its curvature, and what happens if it diverges."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs


def quadratic_chains(sampler, number, length):
    """Chains on L = s w**2 / 2, f = w**2 / 2 at s = 1, side by side."""
    problem = hs.BilevelProblem(
        lambda s, w, b: tf.reduce_sum(s * w**2) / 2,
        lambda s, w, b: tf.reduce_sum(w**2) / 2,
    )

    @tf.function(autograph=False, jit_compile=True)
    def chains():
        return hs.hypergradient(
            problem,
            tf.ones([number], tf.float64),
            tf.zeros([number], tf.float64),
            estimator=hs.estimators.AdjointSGLD(*length),
            sampler=sampler,
            seed=2,
        ).hypergradient

    draws = chains().numpy()
    return draws.mean(), draws.std() / np.sqrt(number)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        # -tau/2 (1 - x) / (1 - x/2)**2 with x = alpha * curvature. The q of
        # after the step would give -tau/2 / (1 - x/2)**2.
        (dict(learning_rate=0.5), -0.15 * 0.5 / 0.75**2),
        (dict(learning_rate=0.2), -0.15 * 0.8 / 0.9**2),
        (dict(learning_rate=0.5, integrator="averaged"), -0.15),
        (
            dict(learning_rate=0.2, integrator="averaged", momentum=0.8),
            -0.15,
        ),
    ],
)
def test_sample_has_the_q_of_before_the_step(arguments, expected):
    mean, error = quadratic_chains(
        hs.SGLD(temperature=0.3, **arguments), 20_000, (60, 60)
    )
    assert error < 0.0012
    assert abs(mean - expected) < 4 * error, (mean, error)


NETWORK = np.random.default_rng(4)
X, Y = NETWORK.normal(size=(12, 3)), NETWORK.normal(size=12)
PARAMS = [tf.constant(NETWORK.normal(size=shape)) for shape in ((3, 4), (4, 1))]


def network(params):
    return tf.squeeze(tf.tanh(X @ params[0]) @ params[1], 1)


def inner(strengths, params, batch):
    predictions = hs.mark_predictions(network(params))
    penalty = sum(
        s * tf.reduce_sum(p**2) for s, p in zip(strengths, params, strict=True)
    )
    return tf.reduce_mean((predictions - Y) ** 2) + penalty


def outer(strengths, params, batch):
    return tf.reduce_mean((network(params) - 0.5 * Y) ** 2)


def solve(sampler, steps=(6, 4), strengths=(0.05, 0.02), **arguments):
    return hs.hypergradient(
        hs.BilevelProblem(inner, outer),
        [tf.constant(s, tf.float64) for s in strengths],
        PARAMS,
        estimator=hs.estimators.AdjointSGLD(*steps, **arguments),
        sampler=sampler,
    )


@functools.cache
def dense(curvature, damping, num_steps=10, burn_in=6, alpha=0.1):
    """The recursion with dense matrices, in NumPy."""

    def shaped(flat):
        return [tf.reshape(flat[:12], [3, 4]), tf.reshape(flat[12:], [4, 1])]

    strengths = [tf.constant(0.05, tf.float64), tf.constant(0.02, tf.float64)]
    w = tf.concat([tf.reshape(p, [-1]) for p in PARAMS], 0)
    q, h = np.zeros(16), np.zeros(2)
    for index in range(num_steps):
        with tf.GradientTape(persistent=True) as second:
            second.watch([w, strengths])
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(w)
                f, value = (
                    outer(strengths, shaped(w), None),
                    inner(strengths, shaped(w), None),
                )
                predictions = network(shaped(w))
            gradient = tape.gradient(value, w)
        v = tape.gradient(f, w).numpy()
        mixed = np.stack(
            [c.numpy() for c in second.jacobian(gradient, strengths)], 1
        )
        if curvature == "hessian":
            matrix = second.jacobian(
                gradient, w, experimental_use_pfor=False
            ).numpy()
        else:
            jacobian = tape.jacobian(
                predictions, w, experimental_use_pfor=False
            ).numpy()
            matrix = 2 / 12 * jacobian.T @ jacobian + 2 * np.diag(
                [0.05] * 12 + [0.02] * 4
            )
        if index >= burn_in:
            h -= q @ mixed / (num_steps - burn_in)
        q = q - alpha * (matrix @ q + damping * q - v)
        w = w - alpha * gradient
    return h


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_recursion_is_that_of_dense_matrices(run, curvature, damping):
    sampler = hs.SGLD(0.1)
    estimate = run(lambda: solve(sampler, curvature=curvature, damping=damping))
    np.testing.assert_allclose(
        estimate.hypergradient, dense(curvature, damping), rtol=1e-9
    )


def test_both_ways_to_the_hessian_agree_under_clipping():
    # The law knows nothing of clipping; a difference of clipped gradients
    # would be another matrix, and not a symmetric one.
    sampler = hs.SGLD(0.1, clipnorm=0.05)
    exact, difference = (
        solve(sampler, hessian_product=product).hypergradient
        for product in ("exact", "difference")
    )
    # The difference is right to three digits; the clipped ones were 1 % off.
    np.testing.assert_allclose(exact, difference, rtol=1e-3)


def test_difference_of_gradients_is_refused_where_it_would_not_be_taken():
    with pytest.raises(ValueError, match="`hessian_product` must be one of"):
        hs.estimators.AdjointSGLD(
            hessian_product="difference", curvature="gauss_newton"
        )


def test_objective_that_marks_nothing_is_told_so():
    problem = hs.BilevelProblem(
        lambda h, w, b: (w - 1) ** 2 + h * w**2, lambda h, w, b: (w - 0.5) ** 2
    )
    with pytest.raises(ValueError, match="keras_hposgld.mark_predictions"):
        hs.hypergradient(
            problem,
            0.1,
            0.0,
            estimator=hs.estimators.AdjointSGLD(curvature="gauss_newton"),
            sampler=hs.SGLD(0.1),
        )


def saddle(**arguments):
    """Negative curvature along one weight: q grows along it."""
    return hs.hypergradient(
        hs.BilevelProblem(
            lambda h, w, b: tf.reduce_sum([1.0, -0.5] * w**2) + h * w[0] ** 2,
            lambda h, w, b: tf.reduce_sum((w - 0.5) ** 2),
        ),
        tf.constant(0.1),
        tf.zeros([2]),
        estimator=hs.estimators.AdjointSGLD(100, 20, **arguments),
        sampler=SAMPLER,
    )


SAMPLER = hs.SGLD(0.2)


def test_divergence_is_never_a_finite_hypergradient(run):
    estimate = run(saddle)
    assert np.isnan(estimate.hypergradient)
    assert np.isinf(estimate.residual)
    # Damping above the most negative curvature brings it back.
    damped = run(lambda: saddle(damping=2.0))
    assert np.isfinite(damped.hypergradient)
    assert float(damped.residual) < 1.0


def test_memory_starts_the_next_chain_with_its_velocity():
    sampler = hs.SGLD(0.05, momentum=0.6)
    whole = solve(sampler, steps=(8, 4))
    first = solve(sampler, steps=(0, 8))
    assert len(first.kept) == 4  # q and its velocity
    resumed = hs.hypergradient(
        hs.BilevelProblem(inner, outer),
        [tf.constant(0.05, tf.float64), tf.constant(0.02, tf.float64)],
        estimator=hs.estimators.AdjointSGLD(0, 4),
        sampler=sampler,
        previous=first,
    )
    np.testing.assert_allclose(
        resumed.hypergradient, whole.hypergradient, rtol=1e-12
    )
