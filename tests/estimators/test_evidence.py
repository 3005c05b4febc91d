"""The evidence, against quadrature, closed forms and scikit-learn."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs

TAU = 0.2
NUM_CHAINS = 300
GRID = np.linspace(-4.0, 4.0, 40_001)


def energy(strength, w):
    return w**4 / 4 - w + strength * w**2


def exact_slope(strength, temperature, step=1e-4):
    """dF/dstrength of one weight, by quadrature."""

    def free_energy(s):
        u = energy(s, GRID)
        log_z = np.log(np.sum(np.exp(-(u - u.min()) / temperature)))
        return u.min() - temperature * (log_z + 0.5 * np.log(s))

    above, below = free_energy(strength + step), free_energy(strength - step)
    return (above - below) / (2 * step)


@pytest.mark.parametrize("noise_scale", [1.0, 0.5])
def test_gradient_is_that_of_quadrature(run, noise_scale):
    number, strength = 2500, 0.7
    problem = hs.BilevelProblem(
        lambda s, w, batch: tf.reduce_sum(energy(s, w)),
        log_normalizer=lambda s, tau: -0.5 * tf.reduce_sum(tf.math.log(s)),
    )
    sampler = hs.SGLD(
        0.1, TAU / noise_scale**2, noise_scale, integrator="averaged"
    )
    estimator = hs.estimators.Evidence(burn_in=60, num_samples=90)

    def chains():
        return hs.hypergradient(
            problem,
            tf.fill([number], tf.constant(strength, tf.float64)),
            tf.fill([number], tf.constant(0.7, tf.float64)),
            estimator=estimator,
            sampler=sampler,
            seed=1,
        ).hypergradient

    draws, exact = run(chains).numpy(), exact_slope(strength, TAU)
    error = draws.std() / np.sqrt(number)
    assert error < 0.01 * abs(exact)
    # The step leaves a bias of second order in 0.1 times the curvature.
    assert abs(draws.mean() - exact) < 0.02 * abs(exact) + 2 * error


def test_normalizer_knows_the_temperature_of_the_law():
    # Half of a Laplace prior's normalizer, whose slope has a temperature here.
    problem = hs.BilevelProblem(
        lambda s, w, batch: energy(s, w),
        log_normalizer=lambda s, tau: tau * s,
    )
    sampler = hs.SGLD(0.05, 0.3, noise_scale=0.5, seed=0)
    with_, without = (
        hs.hypergradient(
            problem,
            tf.constant(0.7, tf.float64),
            tf.constant(0.1, tf.float64),
            estimator=hs.estimators.Evidence(0, 3),
            sampler=sampler,
        ).hypergradient
        for problem in (
            problem,
            hs.BilevelProblem(
                lambda s, w, batch: energy(s, w),
                log_normalizer=lambda s, tau: 0.0,
            ),
        )
    )
    np.testing.assert_allclose(with_ - without, (0.3 * 0.25) ** 2, rtol=1e-10)


def test_a_step_takes_one_pass_and_never_the_outer_objective(run):
    calls = []

    def inner(s, w, batch):
        calls.append(1)
        return energy(s, w)

    def outer(s, w, batch):
        raise AssertionError("the evidence has no outer objective")

    problem = hs.BilevelProblem(
        inner, outer, log_normalizer=lambda s, tau: -0.5 * tf.math.log(s)
    )
    sampler = hs.SGLD(0.05, 0.1, seed=0)
    run(
        lambda: (
            hs.hypergradient(
                problem,
                tf.constant(0.7),
                tf.constant(0.1),
                estimator=hs.estimators.Evidence(2, 3),
                sampler=sampler,
            ).hypergradient
        )
    )
    assert len(calls) in (1, 5)  # traced once, or called in each step


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "needs a problem with a `log_normalizer`"),
        ({"decay": lambda s, w: s * w}, "a problem with a decoupled decay"),
        ({"initial_params": lambda s: s}, "a problem with `initial_params`"),
    ],
)
def test_problems_without_a_known_prior_are_refused(arguments, message):
    if arguments:
        arguments["log_normalizer"] = lambda s, tau: 0.0
    problem = hs.BilevelProblem(lambda s, w, batch: energy(s, w), **arguments)
    with pytest.raises(ValueError, match=message) as error:
        hs.hypergradient(
            problem, 0.7, 0.1, estimator="evidence", sampler=hs.SGLD(0.1, 0.1)
        )
    assert "Received: " in str(error.value)


def test_callback_and_meta_model_refuse_it_by_name():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="differentiates the outer loss") as e:
        hs.callbacks.LearnHyperparameters(
            (np.ones((4, 3)), np.ones(4)), estimator="evidence"
        )
    assert "Received: Evidence(burn_in=0" in str(e.value)
    with pytest.raises(ValueError, match="differentiates the outer loss"):
        hs.MetaModel(model).compile(
            hs.SGLD(0.1, 0.1), "mse", hypergradient="evidence"
        )


def test_normalizer_must_be_a_scalar():
    problem = hs.BilevelProblem(
        lambda s, w, batch: tf.reduce_sum(energy(s, w)),
        log_normalizer=lambda s, tau: -0.5 * tf.math.log(s),
    )
    with pytest.raises(ValueError, match="`log_normalizer` must return a sca"):
        hs.hypergradient(
            problem,
            tf.ones([2]),
            tf.ones([2]),
            estimator="evidence",
            sampler=hs.SGLD(0.1, 0.1),
        )


# Linear regression, whose weights have a Gaussian law and whose evidence is a
# Gaussian density of the targets.


@pytest.fixture
def regression(rng):
    return problems.LinearGaussian(rng)


def chains_of(regression, log_strengths, log_noise, **arguments):
    """Independent chains, each with hyperparameters of its own."""
    number = NUM_CHAINS
    hypers = {
        "log_strengths": tf.tile(log_strengths[None], [number, 1]),
        "log_noise": tf.fill([number], tf.cast(log_noise, tf.float64)),
    }
    estimate = hs.hypergradient(regression.problem, hypers, **arguments)
    slope = estimate.hypergradient
    return estimate, tf.concat(
        [slope["log_strengths"], slope["log_noise"][:, None]], axis=1
    )


def sampler_of(regression):
    # Averaged noise has the exact law of a quadratic, at any step.
    return hs.SGLD(
        0.15, 1 / regression.num_examples, integrator="averaged", seed=0
    )


def averages(regression, log_strengths, log_noise, length):
    """Means over independent chains of dF by the logarithms, with errors."""
    sampler = sampler_of(regression)
    mean, _ = regression.posterior(log_strengths, log_noise)

    @tf.function(autograph=False, jit_compile=True)
    def chains():
        return chains_of(
            regression,
            log_strengths,
            log_noise,
            params=tf.tile(mean[None], [NUM_CHAINS, 1]),
            estimator=hs.estimators.Evidence(*length),
            sampler=sampler,
            seed=2,
        )[1]

    draws = chains().numpy()
    return draws.mean(axis=0), draws.std(axis=0) / np.sqrt(NUM_CHAINS)


def test_linear_gaussian_oracle_is_its_derivative(regression):
    at = np.append(regression.log_strengths, regression.log_noise)

    def free_energy(x):
        return regression.free_energy(x[:-1], x[-1])

    numeric = [
        (free_energy(at + unit) - free_energy(at - unit)) / 2e-5
        for unit in 1e-5 * np.eye(len(at))
    ]
    exact = regression.slope(regression.log_strengths, regression.log_noise)
    np.testing.assert_allclose(exact, numeric, rtol=1e-7, atol=1e-10)


def test_gradient_of_linear_gaussian_evidence(regression):
    at = regression.log_strengths, regression.log_noise
    mean, error = averages(regression, *at, length=(60, 100))
    exact = regression.slope(*at)
    # Averaged noise has the exact law of a quadratic: no bias is allowed for.
    assert np.all(abs(mean - exact) < 4 * error), (mean, exact, error)
    assert np.all(error < 0.02 * abs(exact)), error / exact


def test_hypergradient_leads_to_the_optimum_of_the_evidence(regression):
    rounds, sampler = 60, sampler_of(regression)
    # By the inverse of the curvature there, or less: 1/2 a case for the
    # logarithm of a strength, 2 for that of the noise.
    rates = np.append([regression.num_examples] * 4, 0.5)

    def one(number, at, weights, total):
        estimate, slopes = chains_of(
            regression,
            at[:-1],
            at[-1],
            params=weights,
            estimator=hs.estimators.Evidence(0, 15),
            sampler=sampler,
            seed=number,
        )
        change = rates * tf.reduce_mean(slopes, axis=0)
        at -= tf.clip_by_value(change, -1.0, 1.0)
        counts = tf.cast(number >= rounds // 2, tf.float64)
        return number + 1, at, estimate.params, total + counts * at

    @tf.function(autograph=False, jit_compile=True)
    def follow():
        at = np.append(regression.log_strengths, regression.log_noise)
        weights = tf.zeros([NUM_CHAINS, 4], tf.float64)
        state = tf.constant(0), tf.constant(at), weights, tf.zeros_like(at)
        end = tf.while_loop(lambda number, *_: number < rounds, one, state)
        return end[-1] / (rounds - rounds // 2)

    found = follow().numpy()
    log_strengths, log_noise = regression.optimum()
    np.testing.assert_allclose(found[:-1], log_strengths, atol=0.03)
    np.testing.assert_allclose(np.exp(found[-1] - log_noise), 1.0, atol=0.02)


@pytest.mark.parametrize("kind", ["BayesianRidge", "ARDRegression"])
def test_gradient_vanishes_where_scikit_learn_has_converged(regression, kind):
    linear_model = pytest.importorskip("sklearn.linear_model")
    # Gamma hyperpriors of the two precisions: shape and rate.
    gammas = dict(alpha_1=1.0, alpha_2=0.2, lambda_1=0.5, lambda_2=0.3)
    fitted = getattr(linear_model, kind)(
        fit_intercept=False, tol=1e-13, max_iter=5000, **gammas
    ).fit(regression.x, regression.y)
    precisions = np.broadcast_to(fitted.lambda_, regression.x.shape[1:])
    # s w^2 / tau is lambda w^2 / 2.
    at = (
        np.log(precisions / (2 * regression.num_examples)),
        -0.5 * np.log(fitted.alpha_),
    )
    # Minus tau times the logarithms of the hyperpriors, by the logarithms.
    n, is_shared = regression.num_examples, kind == "BayesianRidge"
    prior = np.append(
        -(gammas["lambda_1"] - gammas["lambda_2"] * precisions) / n,
        2 * (gammas["alpha_1"] - gammas["alpha_2"] * fitted.alpha_) / n,
    )
    if is_shared:  # one strength, one hyperprior
        prior[:-1] /= len(precisions)

    def total(slope):
        if is_shared:
            slope = np.append(slope[..., :-1].sum(), slope[..., -1])
        return slope

    slope = regression.slope(*at)
    np.testing.assert_allclose(total(slope + prior), 0.0, atol=1e-8)
    assert np.abs(total(prior)).max() > 1e-3  # they matter
    mean, error = averages(regression, *at, length=(40, 80))
    assert np.all(abs(mean + prior)[-1] < 4 * error[-1])
    spread = np.append(
        np.sqrt(np.sum(error[:-1] ** 2)) if is_shared else error[:-1],
        error[-1],
    )
    assert np.all(abs(total(mean + prior)) < 4 * spread), (mean, prior, error)


def test_standard_error_is_the_spread_over_independent_chains():
    estimator = hs.estimators.Evidence(100, 400)
    problem = hs.BilevelProblem(
        lambda s, w, batch: energy(s, w),
        log_normalizer=lambda s, tau: -0.5 * tf.math.log(s),
    )
    sampler = hs.SGLD(0.05, TAU)

    @tf.function(autograph=False, jit_compile=True)
    def chain(seed):
        result = hs.hypergradient(
            problem,
            tf.constant(0.7, tf.float64),
            tf.constant(0.5, tf.float64),
            estimator=estimator,
            sampler=sampler,
            seed=seed,
        )
        return result.hypergradient, result.standard_error

    draws, errors = np.array([chain(tf.constant(s)) for s in range(150)]).T
    assert 0.7 * draws.std() < errors.mean() < 1.2 * draws.std()
