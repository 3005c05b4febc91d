"""Every sampler with every estimator. A new one joins by one line."""

import chains
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.estimators.registry import REGISTRY as ESTIMATORS
from keras_hposgld.samplers.registry import REGISTRY as SAMPLERS

# Powers of two: Keras has its rates in float32, which rounds nothing here.
RATE = keras.optimizers.schedules.PiecewiseConstantDecay(
    [6, 8], [0.0625, 0.03125, 0.015625]
)
DIFFERENTIATED = {
    "sgld": lambda: hs.SGLD(0.05),
    "sgld_noisy": lambda: hs.SGLD(0.05, 0.1, noise_scale=0.5, seed=1),
    "sgld_clipped": lambda: hs.SGLD(RATE, 0.1, global_clipnorm=1.0),
    "sgld_momentum": lambda: hs.SGLD(0.05, 0.1, momentum=0.7, clipnorm=0.9),
    "sgld_averaged": lambda: hs.SGLD(
        0.05, 0.1, momentum=0.4, integrator="averaged", noise="rademacher"
    ),
    "psgld": lambda: hs.PSGLD(0.05, 0.1, momentum=0.5, beta_2=0.9),
    "sgd_nesterov": lambda: keras.optimizers.SGD(
        RATE, momentum=0.8, nesterov=True
    ),
    "rmsprop": lambda: keras.optimizers.RMSprop(
        RATE, rho=0.8, momentum=0.5, centered=True, epsilon=1e-2
    ),
    "adam": lambda: keras.optimizers.Adam(RATE, clipvalue=0.5),
    "amsgrad": lambda: keras.optimizers.Adam(RATE, amsgrad=True),
    "adamw": lambda: keras.optimizers.AdamW(RATE, weight_decay=0.4),
    "nadam": lambda: keras.optimizers.Nadam(RATE, weight_decay=0.2),
    "adamax": lambda: keras.optimizers.Adamax(RATE, use_ema=True),
    "sgld_exponential": lambda: hs.SGLD(
        RATE, 0.1, integrator="exponential", clipnorm=0.9
    ),
}
UNROLLED = {
    "rmd": dict(num_steps=chains.NUM_STEPS),
    "fmd": dict(num_steps=chains.NUM_STEPS),
    "hpo_sgld": dict(burn_in=2, num_samples=chains.NUM_STEPS - 2),
}


def test_every_registered_sampler_is_listed_here():
    kinds = {type(hs.samplers.get(make())) for make in DIFFERENTIATED.values()}
    for alias in SAMPLERS.aliases:
        assert SAMPLERS.find(alias) in kinds, alias
    names = {type(make()).__name__ for make in DIFFERENTIATED.values()}
    assert {"SGD", "RMSprop", "Adam", "AdamW", "Nadam", "Adamax"} <= names


QUICK = ("psgld", "adamw")  # in `make test` too, and in all modes
MODES = ("eager", "graph", "xla")


@pytest.mark.parametrize(
    "name, mode",
    [
        pytest.param(
            name,
            mode,
            marks=[] if mode == "graph" and name in QUICK else pytest.mark.slow,
        )
        for number, name in enumerate(DIFFERENTIATED)
        for mode in MODES
        if name in QUICK or mode == MODES[number % 3]  # all would take long
    ],
)
def test_unrolled_estimators_differentiate_the_whole_chain(name, mode):
    sampler = hs.samplers.get(DIFFERENTIATED[name]())
    # From a chain before it: the state of the sampler is not that of a start.
    warm = hs.hypergradient(
        hs.BilevelProblem(
            chains.inner,
            chains.outer,
            decay=chains.decay,
            curvature=chains.curvature,
        ),
        chains.STRENGTHS,
        chains.START,
        estimator=hs.estimators.HPOSGLD(0, chains.NUM_STEPS),
        sampler=sampler,
        inner_batches=chains.BATCHES,
        outer_batches=chains.BATCHES,
    )
    state = sampler.restart(warm.sampler_state)
    # A velocity that comes from before the chain moves it, and has no
    # derivative.
    reference = chains.Reference(sampler, state, chains.NUM_STEPS)
    exact = reference.derivative()
    expected = {
        "rmd": exact,
        "fmd": exact,
        "hpo_sgld": reference.paper_recursion(2, "paper"),
        "hpo_sgld_telescoped": reference.paper_recursion(2, "telescoped"),
    }

    def solve(alias, **arguments):
        estimator = ESTIMATORS.find(alias)(**UNROLLED[alias], **arguments)
        chain = hs.estimators.Chain(
            chains.PROBLEM,
            chains.STRENGTHS,
            sampler,
            chains.NUM_STEPS,
            tf.constant([7, 0]),
            sampler_state=state,
        )
        return hs.estimators.run_chain(
            estimator, chain, None, chains.BATCHES, chains.BATCHES
        ).hypergradient

    def estimates():
        results = {alias: solve(alias) for alias in UNROLLED}
        results["hpo_sgld_telescoped"] = solve(
            "hpo_sgld", curvature="telescoped"
        )
        return results

    if mode != "eager":
        estimates = tf.function(
            estimates, autograph=False, jit_compile=mode == "xla"
        )
    for alias, hypergradient in estimates().items():
        for ours, oracle in zip(hypergradient, expected[alias], strict=True):
            np.testing.assert_allclose(
                ours, oracle, rtol=1e-8, atol=1e-10, err_msg=alias
            )


NOISY = {
    "euler": (lambda **law: hs.SGLD(0.05, **law), 0.05),
    "averaged": (
        lambda **law: hs.SGLD(0.2, integrator="averaged", **law),
        0.01,
    ),
    "momentum": (
        lambda **law: hs.SGLD(0.05, momentum=0.8, integrator="averaged", **law),
        0.01,
    ),
    "exponential": (
        lambda **law: hs.SGLD(0.05, integrator="exponential", **law),
        0.05,
    ),
    "psgld": (lambda **law: hs.PSGLD(0.15, momentum=0.3, **law), 0.01),
}
TEMPERATURE = 0.05


def energy_1d(s, w):
    return w**4 / 4 + s * w**2 / 2 - w


def outer_1d(s, w):
    return tf.sin(2 * w) + s * w


def energy_2d(hypers, w):
    """Correlated and not quadratic, with three hyperparameters."""
    a, b, c = hypers
    x, y = w
    quadratic = a * x**2 / 2 + b * y**2 / 2 + 0.6 * x * y
    return quadratic + 0.25 * (x - c * y) ** 4 - x + 0.5 * y


def outer_2d(hypers, w):
    x, y = w
    return tf.sin(x) + x * y**2 + 0.3 * hypers[1] * y


def quadrature_1d(strength, temperature, step=1e-4):
    grid = np.linspace(-3.0, 4.0, 20_001)

    def mean(s):
        u = energy_1d(s, grid)
        density = np.exp(-(u - u.min()) / temperature)
        return np.sum(density * outer_1d(s, grid)) / np.sum(density)

    return (mean(strength + step) - mean(strength - step)) / (2 * step)


def quadrature_2d(hypers, temperature, step=1e-4):
    x, y = np.meshgrid(np.linspace(-2, 4, 801), np.linspace(-4, 3, 801))

    def mean(h):
        u = energy_2d(h, (x, y))
        density = np.exp(-(u - u.min()) / temperature)
        return np.sum(density * outer_2d(h, (x, y))) / np.sum(density)

    units = step * np.eye(3)
    return np.array(
        [(mean(hypers + e) - mean(hypers - e)) / (2 * step) for e in units]
    )


def chain_of(sampler, problem, hypers, params, alias, length):
    """Independent chains side by side; a preconditioner that is not one."""
    state = sampler.init(params)
    if "preconditioner" in state:
        scales = [0.7, 1.3]
        state["preconditioner"] = [
            scale * part
            for scale, part in zip(
                scales, state["preconditioner"], strict=False
            )
        ]
        # What a chain does with the past is tested elsewhere.
        sampler.restart = lambda state: state
    estimator = ESTIMATORS.find(alias)(*length)
    return hs.estimators.run_chain(
        estimator,
        hs.estimators.Chain(
            problem.on_lists(hypers, params),
            hypers,
            sampler,
            0,
            tf.constant([5, 0]),
            sampler_state=state,
        ),
        params,
    )


def bias(draws, exact):
    """Relative bias of the mean of independent chains, and its error."""
    error = draws.std() / np.sqrt(len(draws))
    return abs(draws.mean() - exact) / abs(exact), error / abs(exact)


@pytest.mark.parametrize("name", NOISY)
def test_adjoint_is_the_derivative_of_the_law(name):
    make, tolerance = NOISY[name]
    sampler = make(temperature=TEMPERATURE)
    number = 3000
    problem = hs.BilevelProblem(
        lambda h, w, b: tf.reduce_sum(energy_1d(h[0], w[0])),
        lambda h, w, b: tf.reduce_sum(outer_1d(h[0], w[0])),
        curvature=lambda h: h,
    )
    hypers = [tf.fill([number], tf.constant(0.5, tf.float64))]
    params = [tf.fill([number], tf.constant(0.7, tf.float64))]

    @tf.function(autograph=False, jit_compile=True)
    def chains_1d():
        return chain_of(
            sampler, problem, hypers, params, "adjoint_sgld", (200, 400)
        )

    exact = quadrature_1d(0.5, TEMPERATURE)
    found, error = bias(chains_1d().hypergradient[0].numpy(), exact)
    assert error < 0.005, (found, error)
    assert found < tolerance + 2 * error, (found, error)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOISY)
def test_covariance_is_the_derivative_of_the_law(name):
    # One long chain: the covariance of one chain's objective with the score
    # of another is nothing but noise.
    make, tolerance = NOISY[name]
    sampler = make(temperature=TEMPERATURE)
    problem = hs.BilevelProblem(
        lambda h, w, b: energy_1d(h[0], w[0]),
        lambda h, w, b: outer_1d(h[0], w[0]),
        curvature=lambda h: h,
    )

    @tf.function(autograph=False, jit_compile=True)
    def chain():
        return chain_of(
            sampler,
            problem,
            [tf.constant(0.5, tf.float64)],
            [tf.constant(0.7, tf.float64)],
            "score_covariance",
            (500, 200_000),
        )

    exact, estimate = quadrature_1d(0.5, TEMPERATURE), chain()
    error = float(estimate.standard_error) / abs(exact)
    found = abs(float(estimate.hypergradient[0]) - exact) / abs(exact)
    assert error < 0.1
    assert found < tolerance + 3 * error, (found, error)


@pytest.mark.parametrize("name", NOISY)
def test_adjoint_is_right_where_weights_are_correlated(name):
    make, tolerance = NOISY[name]
    sampler = make(temperature=TEMPERATURE)
    number, length = 2000, (150, 250)
    problem = hs.BilevelProblem(
        lambda h, w, b: tf.reduce_sum(energy_2d(h, w)),
        lambda h, w, b: tf.reduce_sum(outer_2d(h, w)),
        curvature=lambda h: h[:2],
    )
    at = np.array([1.2, 0.9, 0.4])
    hypers = [tf.fill([number], tf.constant(h, tf.float64)) for h in at]
    params = [tf.zeros([number], tf.float64)] * 2

    @tf.function(autograph=False, jit_compile=True)
    def chains_2d():
        return chain_of(
            sampler, problem, hypers, params, "adjoint_sgld", length
        )

    exact = quadrature_2d(at, TEMPERATURE)
    for draws, one in zip(chains_2d().hypergradient, exact, strict=True):
        found, error = bias(draws.numpy(), one)
        assert error < 0.005, (found, error)
        assert found < tolerance + 2 * error, (found, error, exact)


def free_energy_2d(hypers, temperature):
    """-tau log Z, with a prior of x^2 and y^2 alone."""
    x, y = np.meshgrid(np.linspace(-2, 4, 801), np.linspace(-4, 3, 801))
    u = energy_2d(hypers, (x, y))
    total = np.sum(np.exp(-(u - u.min()) / temperature))
    log_z = np.log(total) - u.min() / temperature
    log_prior = -0.5 * np.log(hypers[0] * hypers[1])
    return -temperature * (log_z - log_prior)


@pytest.mark.parametrize("name", NOISY)
def test_evidence_is_that_of_the_law(name):
    # Two weights that are correlated, an energy that is not quadratic, and a
    # hyperparameter that is no strength: what no Gaussian approximation has.
    make, _ = NOISY[name]
    sampler = make(temperature=TEMPERATURE)
    number, length = 2500, (150, 250)
    problem = hs.BilevelProblem(
        lambda h, w, b: tf.reduce_sum(energy_2d(h, w)),
        log_normalizer=lambda h, t: (
            -0.5 * tf.reduce_sum(tf.math.log(h[0]) + tf.math.log(h[1]))
        ),
        curvature=lambda h: h[:2],
    )
    at = np.array([1.2, 0.9, 0.4])
    hypers = [tf.fill([number], tf.constant(h, tf.float64)) for h in at]
    params = [tf.zeros([number], tf.float64)] * 2

    @tf.function(autograph=False, jit_compile=True)
    def chains_2d():
        return chain_of(sampler, problem, hypers, params, "evidence", length)

    units = 1e-4 * np.eye(3)
    exact = [
        (
            free_energy_2d(at + unit, TEMPERATURE)
            - free_energy_2d(at - unit, TEMPERATURE)
        )
        / 2e-4
        for unit in units
    ]
    for draws, one in zip(chains_2d().hypergradient, exact, strict=True):
        found, error = bias(draws.numpy(), one)
        assert error < 0.005, (found, error)
        assert found < 0.02 + 2 * error, (found, error, exact)
