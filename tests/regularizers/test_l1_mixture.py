"""L1 penalties as mixtures of quadratic ones, where the evidence is learned."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import state
from builders import values

import keras_hposgld as hs
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.regularizers import mixture

L1 = hs.regularizers.LearnableL1
L1L2 = hs.regularizers.LearnableL1L2
N, MEAN = 50, 0.3
TAU = 1 / N


def make_learner(
    regularizer, width=1, inputs=1, update="gibbs", sampler=None, **arguments
):
    model = keras.Sequential(
        [
            keras.Input((inputs,)),
            keras.layers.Dense(
                width,
                use_bias=False,
                kernel_regularizer=regularizer,
                kernel_initializer=keras.initializers.RandomNormal(seed=0),
                name="dense",  # draws have seeds by the paths of weights
            ),
        ],
        name="model",
    )
    learner = hs.BilevelModel(model, seed=0)
    # Noise, and strengths of `update="optimizer"`, are held.
    defaults = dict(
        optimizer=sampler or hs.SGLD("auto", seed=1),
        loss=hs.losses.LearnableGaussianLoss(1.0),
        hypergradient=hs.estimators.Evidence(0, 10, update=update),
        hyper_optimizer=keras.optimizers.SGD(0.0),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, x, y, chains=4, **arguments):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The hyperparameters were updated")
        warnings.filterwarnings("ignore", ".*did not move")
        warnings.filterwarnings("ignore", "Next to nothing of the targets")
        defaults = dict(steps_per_epoch=10 * chains, verbose=0)
        return learner.fit(x, y, **(defaults | arguments))


def same_data_for_all(width):
    """N targets of a mean known exactly, the same for each of the outputs."""
    y = np.random.default_rng(0).normal(size=(N, 1))
    y = np.repeat((y - y.mean()) / y.std() + MEAN, width, axis=1)
    return np.ones((N, 1)), y


def assert_moments(draws, points, density, tolerance=0.03):
    """Mean and deviation of draws, against quadrature on a grid."""
    density = density / density.sum()
    mean = (density * points).sum()
    deviation = np.sqrt((density * (points - mean) ** 2).sum())
    assert abs(draws.mean() - mean) < tolerance * deviation
    assert abs(draws.std() / deviation - 1) < tolerance


@pytest.mark.parametrize("kind", [L1, L1L2])
def test_weights_follow_the_posterior_under_weak_and_strong_rates(
    float64, kind
):
    # Independent weights with the same data: a chain each, 1000 a rate.
    rates, number, precision = (1.0, 20.0, 300.0), 1000, 30.0
    width = len(rates) * number
    owner = kind(0.1, max_value=100.0)
    learner = make_learner(
        owner, width, update="optimizer", posterior_samples=40
    )
    strengths = TAU * np.repeat(rates, number)[None]
    owner.hyperparameter_variables[0].assign(
        owner.unconstrain(strengths, "float64")
    )
    if kind is L1L2:
        owner.hyperparameter_variables[1].assign(
            owner.unconstrain(
                np.full([1, width], 0.5 * TAU * precision), "float64"
            )
        )
    x, y = same_data_for_all(width)
    fit(learner, x, y, chains=160)
    draws = learner.posterior_predict(x[:1])[:, 0]
    w = np.linspace(-2, 2, 400_001)
    for position, rate in enumerate(rates):
        log_density = -N / 2 * (w - MEAN) ** 2 - rate * np.abs(w)
        if kind is L1L2:
            log_density -= precision / 2 * w**2
        own = slice(position * number, (position + 1) * number)
        density = np.exp(log_density - log_density.max())
        # Of 40 000 draws: the standard errors are below 1 %.
        assert_moments(draws[:, own], w, density)


@pytest.mark.parametrize(
    "update", ["gibbs", pytest.param("auto", marks=pytest.mark.slow)]
)
def test_both_strengths_of_l1l2_follow_the_weights_by_a_rule(update):
    # An optimizer would leave them where they are: its learning rate is zero.
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, 3)).astype("float32")
    y = x[:, :1] + 0.3 * rng.normal(size=(N, 1)).astype("float32")
    owner = L1L2(granularity="input")
    learner = make_learner(owner, inputs=3, update=update)
    fit(learner, x, y, chains=100)
    l1, l2 = (np.ravel(v) for v in owner.hyperparameter_values().values())
    assert l1[1:].min() > 1.5 * l1[0] and l2[1:].min() > 1.5 * l2[0]
    held = L1L2(granularity="input")
    fit(make_learner(held, inputs=3, update="optimizer"), x, y, chains=20)
    for value in held.hyperparameter_values().values():
        np.testing.assert_array_equal(value, np.ravel(value)[0])


def test_rates_follow_their_law_given_the_data(float64, monkeypatch):
    # Else the common scale of the rates is drawn, too.
    monkeypatch.setattr(
        "keras_hposgld.training.own_rules.is_one_linear_layer", lambda _: False
    )
    learner = make_learner(L1(), 2000, posterior_samples=40)
    x, y = same_data_for_all(2000)
    fit(learner, x, y, chains=160)
    # Of both signs, and dense near zero, where a large rate puts a weight.
    log_size = np.linspace(-25, 1, 1301)
    w = np.concatenate([-np.exp(log_size), np.exp(log_size)])[None]
    log_r = np.linspace(-20, 25, 901)[:, None]
    r, usual = np.exp(log_r), 2.0  # sqrt(4 fan_in)
    strengths, noise = values(learner)
    joint = -N / 2 * ((w - MEAN) / noise) ** 2 - r * np.abs(w)
    joint += np.log(np.abs(w)) + log_r
    # A half-Cauchy law of sqrt(r), as a density of log r.
    joint += 0.5 * log_r - np.log(r + usual)
    joint = np.exp(joint - joint.max())
    draws = learner.posterior_predict(x[:1])[:, 0]
    assert_moments(draws, w[0], joint.sum(axis=0))
    # Of one draw a weight: the standard errors are 2 %.
    rates = np.log(strengths / TAU)
    assert_moments(rates, log_r[:, 0], joint.sum(axis=1), 0.06)


def test_sparse_regression_ends_with_weights_near_zero():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 20))
    weights = np.zeros((20, 1))
    weights[:4] = [[2.0], [-1.5], [1.0], [-0.7]]
    y = x @ weights + 0.5 * rng.normal(size=(200, 1))
    learner = make_learner(L1(), inputs=20)
    fit(learner, x, y, chains=200)
    found = learner.predict(np.eye(20), verbose=0)
    # The standard error of least squares is 0.035.
    assert np.abs(found[:4] - weights[:4]).max() < 0.12
    exact = np.linalg.lstsq(x, y, rcond=None)[0]
    assert np.abs(found[4:]).mean() < 0.5 * np.abs(exact[4:]).mean()
    strengths, noise = values(learner)
    assert strengths[:4].max() < np.median(strengths[4:])
    assert abs(noise - 0.5) < 0.08


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.02, 30.0])
def test_curvatures_are_drawn_by_their_law(size):
    # t = tau / h has the mean |d| / r + 1 / r^2, and 1 / t the mean r / |d|.
    owner = L1(0.1, granularity="output", center="initial", max_value=1e6)
    weight = keras.Variable(np.full((20_000, 2), 0.7), dtype="float64")
    penalty = owner.attach(weight)
    (variable,) = owner.hyperparameter_variables
    strengths = np.array([0.1, 4.0])
    variable.assign(owner.unconstrain(strengths, "float64"))
    owner.add_mixture(penalty, 0.0)
    signs = np.where(np.arange(20_000) % 2, 1.0, -1.0)[:, None]
    end = ChainEnd(
        rule="gibbs",
        temperature=TAU,
        weight=lambda _: tf.constant(0.7 + size * signs * [[1.0, 1.0]]),
        slope=lambda _: None,
        number=tf.constant(3),
        seed_of=lambda variable, purpose=0: tf.constant([1, purpose]),
    )
    owner.draw_latents(end)
    h, rates = penalty.mixture.numpy(), strengths / TAU
    assert np.isfinite(h).all() and h.min() > 0
    np.testing.assert_allclose(
        (TAU / h).mean(axis=0), size / rates + 1 / rates**2, rtol=0.05
    )
    if size > 0.01:
        np.testing.assert_allclose(
            (h / TAU).mean(axis=0), rates / size, rtol=0.05
        )


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_curvature_is_too_large_for_its_dtype(dtype):
    owner = L1(1e4, max_value=6e4)
    weight = keras.Variable(np.zeros((50, 4)), dtype=dtype)
    penalty = owner.attach(weight)
    owner.add_mixture(penalty, 0.0)
    end = ChainEnd(
        *("gibbs", 1e-6, lambda v: v, None, tf.constant(0)),
        lambda variable, purpose=0: tf.constant([1, purpose]),
    )
    owner.draw_latents(end)
    h = tf.cast(penalty.mixture, tf.float32).numpy()
    assert np.isfinite(h).all() and np.min(h) > 0
    with mixture.mixing([weight]):
        assert np.isfinite(float(weight.regularizer(weight)))


@pytest.mark.parametrize("kind", [L1, L1L2])
@pytest.mark.parametrize("bijector", [None, "softplus"])
def test_only_the_weights_follow_the_quadratic_penalty(kind, bijector, rng):
    import tensorflow_probability as tfp

    owner = kind(
        0.3,
        granularity="input",
        center="initial",
        bijector=bijector and tfp.bijectors.Softplus(),
    )
    weight = keras.Variable(rng.normal(size=(3, 2)), dtype="float64")
    penalty = owner.attach(weight)
    h = rng.uniform(1.0, 2.0, size=(3, 2))
    owner.add_mixture(penalty, h)
    variables = [v.value for v in owner.hyperparameter_variables]
    value = tf.constant(weight.numpy() + rng.normal(size=(3, 2)))

    def derivatives():
        with tf.GradientTape() as tape:
            tape.watch([value, *variables])
            total = penalty(value)
        return total, *tape.gradient(total, [value, *variables])

    plain = derivatives()
    plain_curvature = penalty.curvature()
    with mixture.mixing([weight]), mixture.mixing([weight]):
        mixed = derivatives()
        curvature = penalty.curvature()
    # To the evidence the penalty is what it was.
    assert_equal([plain[0], *plain[2:]], [mixed[0], *mixed[2:]], rtol=1e-12)
    deviation = value - penalty.center
    by_l2 = 0.0 if plain_curvature is None else plain_curvature
    np.testing.assert_allclose(mixed[1], (h + by_l2) * deviation, rtol=1e-12)
    np.testing.assert_allclose(curvature, h + by_l2, rtol=1e-12)
    assert_equal(list(plain), list(derivatives()))


# What Keras's users do.


def small_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 3))
    return x, x[:, :1] - x[:, 1:2] + 0.3 * rng.normal(size=(30, 1))


def small_learner(**arguments):
    regularizer = L1(0.02, max_value=arguments.pop("bound", 5.0))
    return make_learner(
        regularizer, inputs=3, **({"posterior_samples": 0} | arguments)
    )


def test_validation_and_evaluation_have_the_penalty_as_it_is():
    learner, (x, y) = small_learner(), small_data()
    history = fit(learner, x, y, validation_data=(x, y)).history
    strengths, noise = values(learner)
    kernel = learner.trainable_variables[0].numpy()
    loss = ((y - x @ kernel) ** 2).mean() / (2 * noise**2)
    loss += np.log(noise * np.sqrt(2 * np.pi))
    loss += (strengths * np.abs(kernel)).sum()
    np.testing.assert_allclose(history["val_loss"], loss, rtol=1e-5)
    loss_now = learner.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(loss_now, loss, rtol=1e-5)


@pytest.mark.parametrize("attached", [False, True])
def test_curvatures_are_saved_and_go_on_bit_for_bit(tmp_path, attached):
    def learner():
        if not attached:
            return small_learner()
        dense = keras.layers.Dense(1, name="dense")
        model = keras.Sequential([keras.Input((3,)), dense], name="model")
        model.layers[0].kernel.assign(np.ones((3, 1)))
        learner = hs.BilevelModel(model, regularizer=L1(), seed=0)
        learner.compile(
            hs.SGLD("auto", seed=1),
            hs.losses.LearnableGaussianLoss(),
            hypergradient="evidence",
            posterior_samples=0,
        )
        return learner

    x, y = small_data()
    whole, halves = learner(), learner()
    fit(whole, x, y, epochs=2)
    fit(halves, x, y)
    halves.save(tmp_path / "learner.keras")
    for again in (halves, keras.models.load_model(tmp_path / "learner.keras")):
        fit(again, x, y)
        assert_equal(state(again), state(whole))
        assert_equal(values(again), values(whole))
    (path,) = (v.path for v in whole.variables if "mixture" in v.path)
    assert path.endswith("kernel_mixture")
    history = whole.refit(x, y, optimizer=keras.optimizers.SGD(), verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize("later", ["outer", "euler", "plain"])
def test_other_trainings_afterwards_have_the_penalty_as_it_is(later):
    x, y = small_data()
    # By no rule, which would have drawn a common scale, too.
    after, fresh = (small_learner(update="optimizer") for _ in range(2))
    fit(after, x, y)
    for old, new in zip(
        [*after.trainable_variables, *after.hyperparameters],
        [*fresh.trainable_variables, *fresh.hyperparameters],
        strict=True,
    ):
        new.assign(old)
    for learner in (after, fresh):
        sampler = hs.SGLD(0.05, seed=1, integrator="exponential")
        arguments = dict(
            loss=hs.losses.LearnableGaussianLoss(),
            hyper_optimizer=keras.optimizers.Adam(0.05),
        )
        if later == "plain":
            learner.model.compile("sgd", "mse")
            learner.model.fit(x, y, verbose=0, shuffle=False)
            continue
        if later == "euler":
            sampler = hs.SGLD(0.05, seed=1)
            arguments["hypergradient"] = hs.estimators.Evidence(
                update="optimizer"
            )
        learner.compile(sampler, **arguments)
        learner.outer_iterations.assign(0)
        is_outer = later == "outer"
        fit(learner, x, y, **({"outer_split": 0.3} if is_outer else {}))
    assert_equal(
        list(after.trainable_variables), list(fresh.trainable_variables)
    )


def test_bound_does_not_limit_the_step_where_the_evidence_is_learned():
    x, y = small_data()
    sampler = hs.SGLD(0.2, integrator="exponential", seed=1)
    learner = small_learner(sampler=sampler, bound=1e4)
    fit(learner, x, y)
    # One that nobody asked for is raised.
    owner = L1(granularity="tensor")
    fit(make_learner(owner, inputs=3), x, y)
    assert owner.max_value == 1e6
    with pytest.raises(ValueError, match="`learning_rate \\* max_value`"):
        learner.compile(sampler, "mse", hypergradient="hpo_sgld")


@pytest.mark.parametrize("update", ["gradient", "optimizer"])
def test_all_rules_draw_curvatures(update):
    learner, (x, y) = small_learner(update=update), small_data()
    fit(learner, x, y, chains=1)
    (h,) = (v for v in learner.variables if "mixture" in v.path)
    before = h.numpy()
    fit(learner, x, y, chains=1)
    assert np.all(h.numpy() != before)


# Constant regularizers beside learned ones.


def test_constant_l2_is_a_learned_one_that_is_held():
    x, y = small_data()
    learned = make_learner(
        hs.regularizers.LearnableL2(0.3), inputs=3, update="optimizer"
    )
    constants = [
        make_learner(regularizer, inputs=3, update="optimizer")
        for regularizer in (
            keras.regularizers.L2(0.3),
            keras.regularizers.L1L2(0.0, 0.3),
        )
    ]
    for learner in (learned, *constants):
        fit(learner, x, y)
    for learner in constants:
        assert_equal(
            list(learned.trainable_variables),
            list(learner.trainable_variables),
            rtol=1e-4,
        )


@pytest.mark.parametrize("kind", ["L1", "L1L2"])
def test_constant_l1_is_refused_where_nobody_chose_a_step(kind):
    regularizer = getattr(keras.regularizers, kind)(0.01)
    with pytest.raises(ValueError, match="Keras's L1 cannot be followed by"):
        make_learner(regularizer, inputs=3)
    x, y = small_data()
    fit(make_learner(regularizer, inputs=3, sampler=hs.SGLD(0.01)), x, y)
