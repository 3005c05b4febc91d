"""Learned dropout and noise, against exact laws, differences and Keras."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.layers.draws import uniform
from keras_hposgld.layers.learnable_dropout import clipped
from keras_hposgld.layers.learnable_dropout import RELAXATIONS

RATES = (0.01, 0.35, 0.8)


def make(kind, seed=3, **arguments):
    """A layer: `"clipped"` or `"gaussian"` dropout, or `"noise"`."""
    if kind == "noise":
        return hs.layers.LearnableGaussianNoise(0.3, seed=seed, **arguments)
    arguments = {"initial_rate": 0.35, "max_rate": 0.8} | arguments
    return hs.layers.LearnableDropout(relaxation=kind, seed=seed, **arguments)


def set_amount(layer, value):
    share = np.broadcast_to(value, layer.unconstrained.shape) / layer.max_value
    layer.unconstrained.assign(np.log(share / (1 - share)))


def derivative(layer, function):
    """A function without arguments, and its derivative by the variable."""
    value = layer.unconstrained.value
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(value)
        result = function()
    return result, tape.gradient(result, value)


# The laws.


@pytest.mark.parametrize("rate", RATES)
def test_clipped_mask_has_mean_variance_and_ends_of_its_law(rate):
    # The midpoint rule is exact but for the cells of the two kinks.
    draws = tf.constant((np.arange(200_000) + 0.5) / 200_000)
    factor = clipped(tf.constant(rate, "float64"), draws).numpy()
    keep = 2 * (1 - rate) / (2 + rate)
    np.testing.assert_allclose(factor.mean(), 1.0, atol=1e-9)
    np.testing.assert_allclose(factor.var(), rate / (1 - rate), rtol=1e-6)
    for end, share in ((0.0, (1 - keep) ** 2), (1 / keep, keep**2)):
        np.testing.assert_allclose((factor == end).mean(), share, atol=1e-5)


@pytest.mark.parametrize("rate", RATES)
def test_derivative_of_the_mask_is_that_of_the_exact_expectation(rate):
    # E[exp(s m)] of the factor m, integrated by hand over its three parts.
    slope = 0.7

    def expected(rate):
        keep = 2 * (1 - rate) / (2 + rate)
        top = slope / keep
        ramp = 2 * keep * (1 - keep) * (math.exp(top) - 1) / top
        return (1 - keep) ** 2 + keep**2 * math.exp(top) + ramp

    rate = tf.constant(rate, "float64")
    draws = tf.constant((np.arange(200_000) + 0.5) / 200_000)
    with tf.GradientTape() as tape:
        tape.watch(rate)
        value = tf.reduce_mean(tf.exp(slope * clipped(rate, draws)))
    np.testing.assert_allclose(value, expected(float(rate)), rtol=1e-8)
    step = 1e-5
    difference = (expected(rate + step) - expected(rate - step)) / (2 * step)
    # The derivative jumps at the two kinks, by some 1 / (1 - keep): off by the
    # part of a cell there.
    np.testing.assert_allclose(
        tape.gradient(value, rate), difference, rtol=2e-3
    )


def test_noise_of_the_derivative_is_what_the_page_says():
    # Over the least that a law of this mean and variance can have.
    rate, step = 0.2, 1e-6
    draws = tf.constant((np.arange(200_000) + 0.5) / 200_000)
    ahead, back = (
        clipped(tf.constant(rate + move, "float64"), draws).numpy()
        for move in (step, -step)
    )
    noise = np.mean(((ahead - back) / (2 * step)) ** 2)
    least = 1 / (4 * rate * (1 - rate) ** 3)
    assert noise / least == pytest.approx(2.8, abs=0.05)


@pytest.mark.parametrize("kind", [*RELAXATIONS, "noise"])
def test_draws_have_the_mean_and_variance_of_the_law(kind, run):
    # 4 features, 100 000 examples: standard errors from the draws themselves.
    layer = make(kind, granularity="input")
    layer.build((None, 4))
    amounts = np.array([0.05, 0.3, 0.5, 0.7])
    set_amount(layer, amounts)
    x = np.array([1.0, -2.0, 3.0, 0.5], "float32")
    inputs = tf.constant(np.tile(x, (100_000, 1)))
    noise = run(lambda: layer(inputs, training=True)).numpy() - x
    law = amounts**2 if kind == "noise" else x**2 * amounts / (1 - amounts)
    error = noise.std(axis=0) / np.sqrt(len(noise))
    assert np.all(np.abs(noise.mean(axis=0)) < 4.5 * error)
    error = (noise**2).std(axis=0) / np.sqrt(len(noise))
    assert np.all(np.abs((noise**2).mean(axis=0) - law) < 4.5 * error)
    # Features and examples draw apart.
    correlations = np.corrcoef(np.c_[noise[1:], noise[:-1]].T)
    others = correlations[~np.eye(8, dtype=bool)]
    assert np.abs(others).max() < 4.5 / np.sqrt(len(noise))


def test_uniform_numbers_are_uniform_and_the_same_under_any_compiler(run):
    draws = run(lambda: uniform([50_000], "float32", tf.constant([5, 6])))
    draws = np.sort(draws.numpy())
    assert draws[0] > 0 and draws[-1] < 1
    # The distance of Kolmogorov and Smirnov exceeds 1.95 / sqrt(n) in one of a
    # thousand seeds.
    grid = (np.arange(50_000) + 0.5) / 50_000
    assert np.abs(draws - grid).max() < 1.95 / np.sqrt(50_000)
    eager = uniform([50_000], "float32", tf.constant([5, 6]))
    np.testing.assert_array_equal(draws, np.sort(eager.numpy()))


# The derivative by the amount.


@pytest.mark.parametrize("granularity", ["tensor", "input"])
@pytest.mark.parametrize("kind", [*RELAXATIONS, "noise"])
def test_derivative_is_that_of_differences_with_fixed_draws(
    kind, granularity, run, rng, float64
):
    layer = make(kind, granularity=granularity)
    x, weights = rng.normal(size=(2, 6, 5, 4))
    layer.build(x.shape)
    state = layer.seed_generator.state.numpy()

    def objective():
        layer.seed_generator.state.assign(state)
        return tf.reduce_sum(weights * tf.tanh(layer(x, training=True)))

    _, slope = run(lambda: derivative(layer, objective))
    start, step = layer.unconstrained.numpy(), 1e-6
    values = []
    for move in (-step, step):
        layer.unconstrained.assign(start + move)
        values.append(float(objective()))
    expected = (values[1] - values[0]) / (2 * step)
    assert abs(expected) > 0.01
    # Central differences: cubic in the step, and the rounding of the values.
    np.testing.assert_allclose(np.sum(slope), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [*RELAXATIONS, "noise"])
def test_expected_derivative_of_a_linear_model_is_the_closed_form(
    kind, rng, float64
):
    # E (w . m x - y)^2 = (w . x - y)^2 + p / (1 - p) sum w^2 x^2, and its
    # derivative by p is sum w^2 x^2 / (1 - p)^2; with noise 2 s sum w^2.
    layer = make(kind)
    layer.build((None, 3))
    x, w, y = rng.normal(size=3), rng.normal(size=3), 0.4
    inputs = np.tile(x, (1000, 1))
    amount = float(layer.value())

    def losses():
        predictions = tf.linalg.matvec(layer(inputs, training=True), w)
        return tf.reduce_mean((predictions - y) ** 2)

    step = tf.function(lambda: derivative(layer, losses))
    seen = np.array([[float(v) for v in step()] for _ in range(200)])
    inner = amount * (1 - amount / layer.max_value)  # of the sigmoid
    if kind == "noise":
        spread, slope = amount**2 * sum(w**2), 2 * amount * sum(w**2)
    else:
        both = sum(w**2 * x**2)
        spread, slope = (amount / (1 - amount) * both, both / (1 - amount) ** 2)
    expected = np.array([(w @ x - y) ** 2 + spread, slope * inner])
    error = seen.std(axis=0) / np.sqrt(len(seen))
    assert np.all(error < 0.02 * np.abs(expected))
    assert np.all(np.abs(seen.mean(axis=0) - expected) < 4 * error)


# In a chain.


def make_learner(kind, estimator, strategy=None, run_eagerly=False, **layer):
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(6, "tanh"),
                make(kind, name="noise", **layer),
                keras.layers.Dense(3),
            ]
        )
        learner = hs.BilevelModel(model, seed=1)
        learner.compile(
            optimizer=hs.SGLD(0.3, momentum=0.5, seed=2),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            hypergradient=estimator,
            run_eagerly=run_eagerly,
        )
    return learner


def fit(learner, chains=1):
    """The hypergradient and outer loss of each chain."""
    rng = np.random.default_rng(0)
    y = np.arange(48) % 3
    x = rng.normal(size=(48, 5)) + y[:, None] / 2
    seen = []
    learner.outer_level.observers[:] = [
        lambda estimate: seen.append(
            [np.sum(estimate.hypergradient[0]), float(estimate.outer_loss)]
        )
    ]
    if not learner.run_eagerly:
        learner.outer_level.observers.clear()
    learner.fit(
        *(x[:24], y[:24]),
        outer_data=(x[24:], y[24:]),
        batch_size=8,
        steps_per_epoch=chains * learner.hypergradient.num_steps,
        verbose=0,
    )
    return np.array(seen)


@pytest.mark.parametrize("kind", [*RELAXATIONS, "noise"])
def test_hypergradient_is_the_slope_of_the_outer_loss(kind, float64):
    # At temperature 0 and with its draws fixed by seeds a chain is a function
    # of the amount. Differences of it need no other code than the chain's.
    def run_chain(move=0.0):
        learner = make_learner(
            kind, hs.estimators.RMD(num_steps=4), run_eagerly=True
        )
        learner.hyperparameters[0].assign_add(move)
        return fit(learner)[0]

    step = 1e-5
    slope = (run_chain(step)[1] - run_chain(-step)[1]) / (2 * step)
    assert abs(slope) > 1e-5
    np.testing.assert_allclose(run_chain()[0], slope, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:The hyperparameters were updated")
def test_replicas_draw_apart_and_stay_alike(mirrored):
    learner = make_learner("clipped", hs.estimators.HPOSGLD(1, 2), mirrored)
    layer = learner.model.get_layer("noise")

    @tf.function
    def draw():
        return mirrored.run(lambda: layer(tf.ones((4, 6)), training=True))

    one, two = draw().values
    assert np.abs(one - two).max() > 0.1
    fit(learner, chains=2)
    for variable in [*learner.model.weights, *learner.hyperparameters]:
        first, second = variable.value.values
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    assert float(layer.value()) != pytest.approx(0.35, rel=1e-4)


@pytest.mark.parametrize("chain", ["training", "apart"])
def test_callback_learns_it_within_fit(chain):
    keras.utils.set_random_seed(0)
    layer = make("gaussian", granularity="input")
    model = keras.Sequential([keras.Input((5,)), layer, keras.layers.Dense(3)])
    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss=classes)
    x, y = np.random.default_rng(0).normal(size=(60, 5)), np.arange(60) % 3
    learning = hs.callbacks.LearnHyperparameters(
        (x[30:], y[30:]),
        chain=chain,
        every="auto" if chain == "training" else 5,
        estimator=hs.estimators.HPOSGLD(0, 2),
        batch_size=10,
        seed=0,
    )
    before = layer.value().numpy()
    model.fit(
        x[:30], y[:30], batch_size=5, epochs=4, callbacks=[learning], verbose=0
    )
    assert np.all(layer.value() != before)
    assert np.all(np.isfinite(layer.value()))


def test_evidence_refuses_to_learn_it():
    with pytest.raises(ValueError, match="and nothing else"):
        make_learner("gaussian", hs.estimators.Evidence())


# A layer of Keras's.


@pytest.mark.parametrize("kind", [*RELAXATIONS, "noise"])
def test_inputs_pass_in_inference_and_seeds_decide_in_training(kind, rng):
    x = rng.normal(size=(3, 4)).astype("float32")
    one, two, other = (make(kind, seed) for seed in (5, 5, 6))
    first = np.asarray(one(x, training=True))
    state = one.seed_generator.state.numpy()
    np.testing.assert_array_equal(one(x), x)
    np.testing.assert_array_equal(one.seed_generator.state, state)
    np.testing.assert_array_equal(two(x, training=True), first)
    assert np.abs(other(x, training=True) - first).max() > 0.01
    assert np.abs(one(x, training=True) - first).max() > 0.01


def test_noise_shape_is_that_of_keras(rng):
    x = tf.ones((3, 5, 4))
    layer = make("clipped", noise_shape=(None, 1, None))
    masks = layer(x, training=True).numpy()
    assert np.ptp(masks, axis=1).max() == 0
    assert np.ptp(masks, axis=0).max() > 0 and np.ptp(masks, axis=2).max() > 0
    assert layer.exported().noise_shape == (None, 1, None)
    with pytest.raises(ValueError, match="an entry for each axis"):
        make("clipped", noise_shape=(None, 1))(x)


@pytest.mark.parametrize("kind", [*RELAXATIONS, "noise"])
@pytest.mark.parametrize("end", [-30.0, 30.0])
def test_ends_of_the_range_are_finite(kind, end):
    layer = make(kind)
    layer.build((None, 3))
    layer.unconstrained.assign(end)
    value, slope = derivative(
        layer, lambda: tf.reduce_sum(layer(tf.ones((4, 3)), training=True))
    )
    assert np.isfinite(value) and np.isfinite(slope)
    if end < 0:
        np.testing.assert_allclose(value, 12.0, rtol=1e-2)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16"], indirect=True
)
def test_half_precision_keeps_the_rate_in_float32(policy):
    layer = make("clipped")
    with tf.GradientTape() as tape:
        y = layer(tf.ones((2, 500)), training=True)
        value = tf.reduce_mean(tf.cast(y, "float32") ** 2)
    assert y.dtype == keras.config.dtype_policy().compute_dtype
    assert layer.unconstrained.dtype == "float32"
    # 1 / (1 - rate), within five standard errors of 1000 draws.
    np.testing.assert_allclose(value, 1 / 0.65, atol=5 * 0.03)
    slope = tape.gradient(value, layer.unconstrained.value)
    assert slope is None or np.isfinite(slope)


@pytest.mark.parametrize(
    "kind, granularity, cls, key, expected",
    [
        ("clipped", "tensor", keras.layers.Dropout, "rate", 0.3),
        ("gaussian", "tensor", keras.layers.Dropout, "rate", 0.3),
        ("noise", "tensor", keras.layers.GaussianNoise, "stddev", 0.3),
        ("clipped", "input", keras.layers.Dropout, "rate", 0.4),
        (
            "noise",
            "input",
            keras.layers.GaussianNoise,
            "stddev",
            0.1**0.5 * 1.3,
        ),
    ],
)
def test_export_is_the_layer_of_keras(kind, granularity, cls, key, expected):
    layer = make(kind, granularity=granularity, name="noise")
    layer.build((None, 2))
    many = [0.2, 0.6] if kind == "clipped" else [0.13, 0.13 * 19**0.5]
    set_amount(layer, 0.3 if granularity == "tensor" else many)
    if granularity == "tensor":
        exported = layer.exported()
    else:
        with pytest.warns(UserWarning, match="exported layer 'noise' has one"):
            exported = layer.exported()
    assert type(exported) is cls
    assert (exported.name, exported.seed) == ("noise", 3)
    np.testing.assert_allclose(getattr(exported, key), expected, rtol=1e-6)


def test_exported_noise_has_the_variance_of_what_was_learned():
    layer = make("noise", granularity="input")
    layer.build((None, 3))
    set_amount(layer, [0.1, 0.2, 0.6])
    with pytest.warns(UserWarning, match="root of the mean square"):
        stddev = layer.exported().stddev
    np.testing.assert_allclose(3 * stddev**2, 0.01 + 0.04 + 0.36, rtol=1e-6)


def test_saving_keeps_amounts_per_feature(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4,)),
            make("clipped", granularity="input", noise_shape=[None, 1]),
            make("noise", granularity="input"),
        ]
    )
    for layer in model.layers:
        set_amount(layer, [0.1, 0.2, 0.3, 0.4])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for layer, again in zip(model.layers, loaded.layers, strict=True):
        assert again.get_config() == layer.get_config()
        np.testing.assert_array_equal(again.value(), layer.value())
        fresh = type(layer).from_config(layer.get_config())
        fresh.build((None, 4))
        np.testing.assert_allclose(fresh.value(), layer.initial_value)


@pytest.mark.parametrize(
    "make_layer, message",
    [
        (lambda: make("clipped", initial_rate=0.8), "`initial_rate` must lie"),
        (lambda: make("clipped", max_rate=1.0), "`max_rate` must be a finite"),
        (lambda: make("bernoulli"), "`relaxation` must be one of"),
        (lambda: make("clipped", granularity="output"), "`granularity` must"),
        (lambda: make("clipped", noise_shape="none"), "`noise_shape` must be"),
        (lambda: make("clipped", noise_shape=(0,)), "`noise_shape` must be at"),
        (lambda: make("noise", seed=-1), "`seed` must be at least 0"),
        (lambda: make("noise", max_stddev=2.0), "`max_stddev` must be a fin"),
        (lambda: make("noise")(tf.ones((2, 3), "int32")), "floating-point"),
        (
            lambda: make("noise", granularity="input")(keras.Input((None,))),
            "last axis of fixed size",
        ),
    ],
)
def test_what_cannot_be_is_refused(make_layer, message):
    with pytest.raises(ValueError, match=message):
        make_layer()
