"""The step that solves a quadratic penalty exactly: its law and its formula."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.samplers import exponential
from keras_hposgld.samplers import noise as noise_of

SEED = tf.constant([7, 0])


def exponential_sgld(learning_rate, temperature=0.0, **arguments):
    return hs.SGLD(
        learning_rate,
        temperature,
        integrator="exponential",
        seed=3,
        **arguments,
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_phi_is_exact_with_finite_derivatives(run, dtype):
    x = np.array([0.0, 1e-30, 1e-12, 1e-7, 3e-4, 0.1, 2.0, 50.0, 1e30])
    wide = x.astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        expected = np.where(wide == 0, 1.0, -np.expm1(-wide) / wide)
    tensor = tf.constant(x, dtype)

    def both():
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = exponential.phi(tensor)
        return value, tape.gradient(value, tensor)

    value, slope = run(both)
    epsilon = np.finfo(dtype).eps
    np.testing.assert_allclose(value, expected, rtol=8 * epsilon)
    np.testing.assert_allclose(slope[:3], -0.5, rtol=1e-6)
    assert np.all(np.isfinite(slope)) and np.all(np.array(slope) <= 0)


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("product", [1e-6, 0.3, 50.0])
def test_step_is_the_formula(run, product, noise):
    # w <- e w - (1 - e)/h dL/dw + sqrt((1 - e^2) tau/h) z for a penalty
    # h/2 (w - c)^2 and the rest L; the step gets the gradient of their sum.
    rate, tau, kappa = 0.2, 0.3, 0.7
    h = np.array([[product], [2 * product]]) / rate
    rng = np.random.default_rng(0)
    w, center = rng.normal(size=(2, 2, 3))
    rest = np.cos(w)
    e = np.exp(-rate * h)
    z = noise_of.unit_noise(
        w.shape,
        tf.float64,
        noise,
        noise_of.fold_in(noise_of.fold_in(SEED, 5), 0),
    )
    expected = (
        center
        + e * (w - center)
        - (1 - e) / h * rest
        + kappa * np.sqrt((1 - e**2) * tau / h) * z
    )
    sampler = exponential_sgld(rate, tau, noise=noise, noise_scale=kappa)
    params = [tf.constant(w)]
    state = sampler.with_curvature(
        sampler.init(params), params, [tf.constant(h)]
    )
    gradient = [tf.constant(rest + h * (w - center))]

    def step():
        moved, after = sampler.step(params, gradient, None, state, 5, SEED)
        ones = [tf.ones_like(params[0])]
        return moved[0], sampler.force_scale(ones, after, 5)[0]

    moved, scale = run(step)
    # 1 - e loses digits of the formula where h is small.
    np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(scale, np.broadcast_to((1 - e) / h, w.shape))
    assert sampler.uniform_scale(state, 5, tf.float64) is None


@pytest.mark.parametrize("product", [0.4, 50.0])
def test_law_of_a_quadratic_is_exact_at_any_step(run, product):
    # One step from a fixed start, and the law after many.
    rate, tau, number = 0.5, 0.3, 100_000
    h = product / rate
    sampler = exponential_sgld(rate, tau)

    def chain():
        params = [tf.fill([number], tf.constant(1.5, tf.float64))]
        curvature = [tf.constant(h, tf.float64)]
        state, draws = sampler.with_curvature({}, params, curvature), []
        for index in range(8):
            gradient = [h * (params[0] - 0.4)]
            params, state = sampler.step(
                params, gradient, None, state, index, SEED
            )
            draws.append(params[0])
        return draws[0], draws[-1]

    e = np.exp(-product)
    for draws, decay in zip(run(chain), (e, e**8), strict=True):
        draws = draws.numpy()
        mean, variance = 0.4 + decay * 1.1, (1 - decay**2) * tau / h
        assert abs(draws.mean() - mean) < 4 * np.sqrt(variance / number)
        np.testing.assert_allclose(
            draws.var(), variance, rtol=5 * np.sqrt(2 / number)
        )


def test_it_is_eulers_step_where_the_step_is_short():
    # The two differ by (eta h)^2 / 2 times the distance from the center.
    w, h = tf.constant([1.3, -0.7], tf.float64), tf.constant(3.0, tf.float64)

    def moved(sampler):
        state = {}
        if sampler.solves_quadratic:
            state = sampler.with_curvature(state, [w], [h])
        return sampler.step([w], [h * w], None, state, 0, SEED)[0][0].numpy()

    def difference(rate):
        return moved(exponential_sgld(rate)) - moved(hs.SGLD(rate))

    for rate in (1e-2, 1e-3):
        np.testing.assert_allclose(
            difference(rate), (rate * 3.0) ** 2 / 2 * w, rtol=rate * 3.0
        )
    # With no curvature it is that step, noise included.
    flat = exponential_sgld(0.1, 0.2)
    state = flat.with_curvature({}, [w], [None])
    (ours,), _ = flat.step([w], [h * w], None, state, 4, SEED)
    (plain,), _ = hs.SGLD(0.1, 0.2).step([w], [h * w], None, {}, 4, SEED)
    np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_takes_the_same_step_rounded(dtype):
    def moved(dtype):
        sampler = exponential_sgld(0.25, 0.125)
        params = [tf.constant([0.5, -1.25], dtype)]
        state = sampler.with_curvature({}, params, [tf.constant(200.0)])
        gradient = [tf.constant([100.0, -250.0], dtype)]
        (after,), _ = sampler.step(params, gradient, None, state, 0, SEED)
        assert after.dtype == dtype
        return tf.cast(after, tf.float64)

    np.testing.assert_allclose(
        moved(dtype), moved("float64"), rtol=2e-2, atol=2e-2
    )


def problem_of(**arguments):
    return hs.BilevelProblem(
        lambda s, w, batch: (
            tf.reduce_sum(s * w**2) + 0.5 * tf.reduce_sum((w - 1.0) ** 2)
        ),
        lambda s, w, batch: tf.reduce_sum((w - 0.5) ** 2),
        **arguments,
    )


@pytest.mark.parametrize("alias", ["rmd", "adjoint_sgld", "hpo_sgld"])
def test_no_strength_is_too_large_for_a_step(run, alias):
    # At 40 times what an explicit step can follow.
    problem = problem_of(curvature=lambda s: 2 * s)
    sampler, s = exponential_sgld(0.4), np.array([50.0, 2.0])
    rmd = hs.estimators.RMD(num_steps=60)
    estimator = rmd if alias == "rmd" else hs.estimators.get(alias)

    def estimate():
        return hs.hypergradient(
            problem,
            tf.constant(s),
            tf.zeros([2], tf.float64),
            estimator=estimator,
            sampler=sampler,
        )

    result = run(estimate)
    best = 1.0 / (1.0 + 2 * s)
    np.testing.assert_allclose(result.params, best, rtol=1e-6)
    if alias == "rmd":  # the derivative of the fixed point
        exact = 2 * (best - 0.5) * -2 * best**2
        np.testing.assert_allclose(result.hypergradient, exact, rtol=1e-6)
    assert np.all(np.isfinite(result.hypergradient))


def test_eulers_step_diverges_there():
    euler = hs.hypergradient(
        problem_of(),
        tf.constant([50.0, 2.0], tf.float64),
        tf.zeros([2], tf.float64),
        estimator=hs.estimators.RMD(num_steps=60),
        sampler=hs.SGLD(0.4),
    )
    assert not np.abs(euler.params).max() < 1e6


def test_a_chain_that_goes_on_learns_the_curvature_of_now():
    problem, sampler = (
        problem_of(curvature=lambda s: 2 * s),
        exponential_sgld(1),
    )
    first = hs.hypergradient(problem, 1.0, 0.0, sampler=sampler)
    (kept,) = first.sampler_state["curvature"]
    assert float(kept) == 2.0
    second = hs.hypergradient(problem, 3.0, sampler=sampler, previous=first)
    assert float(second.sampler_state["curvature"][0]) == 6.0


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: exponential_sgld(0.1, momentum=0.5), "momentum"),
        (lambda: hs.PSGLD(0.1, integrator="exponential"), "integrator"),
    ],
)
def test_what_it_does_not_go_with_is_named(make, name):
    with pytest.raises(ValueError, match=f"`{name}` must be") as error:
        make()
    assert f"Received: {name}=" in str(error.value)


@pytest.mark.parametrize(
    "curvature, message",
    [
        (None, "needs to know the curvature"),
        (lambda s: tf.ones([3]), "must return tensors that broadcast"),
        (lambda s: [s, s], "must return a structure like the params"),
    ],
)
def test_problems_without_a_curvature_are_refused(curvature, message):
    with pytest.raises(ValueError, match=message) as error:
        hs.hypergradient(
            problem_of(curvature=curvature),
            0.1,
            tf.zeros([2]),
            sampler=exponential_sgld(0.1),
        )
    assert "Received: " in str(error.value)


def test_a_step_without_a_curvature_is_refused():
    with pytest.raises(ValueError, match="needs to know the curvature"):
        exponential_sgld(0.1).move([tf.zeros(2)], [tf.zeros(2)], 0, SEED)


def test_config_keeps_it():
    sampler = exponential_sgld(0.1, 0.2)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(sampler))
    assert copy.integrator == "exponential" and copy.solves_quadratic


# In Keras the regularizer of a weight says what its curvature is.


REGULARIZERS = {
    "keras_l2": lambda: keras.regularizers.L2(30.0),
    "keras_l1l2": lambda: keras.regularizers.L1L2(0.01, 30.0),
    "keras_l1": lambda: keras.regularizers.L1(0.01),
    "l2": lambda: hs.regularizers.LearnableL2(
        30.0, granularity="input", max_value=100.0, center="initial"
    ),
    "l1l2": lambda: hs.regularizers.LearnableL1L2(
        30.0, granularity="output", max_value=100.0
    ),
    "l1": lambda: hs.regularizers.LearnableL1(0.01),
    "none": lambda: None,
}
NOT_QUADRATIC = ("keras_l1", "l1", "none")


def dense(kind):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, kernel_regularizer=REGULARIZERS[kind]()),
        ]
    )
    return model, model.layers[-1]


@pytest.mark.parametrize("kind", REGULARIZERS)
def test_keras_fit_takes_the_step_of_the_formula(kind, rng):
    model, layer = dense(kind)
    start = [w.numpy() for w in layer.trainable_weights]
    sampler = exponential_sgld(0.05, 0.01)
    model.compile(sampler, loss="mse")
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    with tf.GradientTape() as tape:
        error = tf.reduce_mean((model(x) - y) ** 2)
        weights = [w.value for w in layer.trainable_weights]
        total = error + tf.add_n([tf.zeros([]), *model.losses])
    gradient = tape.gradient(total, weights)
    model.fit(x, y, batch_size=8, epochs=1, verbose=0)
    h = 0.0 if kind in NOT_QUADRATIC else 60.0
    params = [tf.constant(value) for value in start]
    state = sampler.with_curvature({}, params, [tf.constant(h), None])
    expected, _ = sampler.step(
        params, gradient, None, state, 0, sampler.chain_seed
    )
    for weight, value in zip(layer.trainable_weights, expected, strict=True):
        np.testing.assert_allclose(weight, value, rtol=1e-5, atol=1e-6)
    # And what a chain of `BilevelModel` would be told.
    told = exponential.of_weight(layer.kernel)
    assert (told is None) == (kind in NOT_QUADRATIC)
    if told is not None:
        np.testing.assert_allclose(
            tf.broadcast_to(told, [3, 2]), np.full([3, 2], 60.0), rtol=1e-5
        )


def test_bilevel_model_learns_strengths_that_eulers_step_cannot_follow(rng):
    x, y = rng.normal(size=(16, 3)), rng.normal(size=(16, 2))
    data = dict(outer_data=(x[8:], y[8:]), batch_size=4, verbose=0)

    def learner(sampler, kind):
        model = hs.BilevelModel(dense(kind)[0])
        model.compile(
            optimizer=sampler,
            loss="mse",
            hypergradient=hs.estimators.HPOSGLD(2, 2),
        )
        return model

    with pytest.raises(ValueError, match="`learning_rate \\* max_value`"):
        learner(hs.SGLD(0.05), "l2").fit(x[:8], y[:8], **data)
    with pytest.raises(ValueError, match="`learning_rate \\* max_value`"):
        learner(exponential_sgld(0.5), "l1").fit(x[:8], y[:8], **data)
    for folds in ({}, {"outer_folds": 2, "outer_data": None}):
        learned = learner(exponential_sgld(0.05), "l2")
        before = learned.hyperparameter_values()
        learned.fit(x[:8], y[:8], **data | folds)
        for path, value in learned.hyperparameter_values().items():
            assert np.all(np.isfinite(value)) and np.any(value != before[path])


def test_chain_of_a_model_is_the_fit_that_it_would_have(rng):
    # One transition: a chain that learns nothing ends where `fit` does.
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    plain, layer = dense("keras_l2")
    plain.compile(exponential_sgld(0.05, 0.01), loss="mse")
    plain.fit(x, y, batch_size=8, epochs=4, verbose=0)
    model, chained = dense("l2")
    chained.kernel_regularizer.center = None
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=exponential_sgld(0.05, 0.01),
        loss="mse",
        hyper_optimizer=keras.optimizers.SGD(1e-30),
        hypergradient=hs.estimators.HPOSGLD(2, 2),
    )
    # An epoch is a whole chain, of four steps.
    learner.fit(x, y, outer_data=(x, y), batch_size=8, verbose=0)
    for ours, theirs in zip(
        chained.trainable_weights, layer.trainable_weights, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_callback_differentiates_the_steps_of_fit(rng):
    # One step of `fit` is a chain, whose derivative holds its scale A.
    rate, s = 0.05, 30.0
    h, bound = 2 * s, 100.0
    owner = hs.regularizers.LearnableL2(
        s, granularity="output", max_value=bound
    )
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, use_bias=False, kernel_regularizer=owner),
        ]
    )
    model.compile(exponential_sgld(rate), loss="mse")
    start = model.layers[-1].kernel.numpy()
    x, y, x_outer, y_outer = rng.normal(size=(4, 4, 3))
    y, y_outer = y[:, :2], y_outer[:, :2]
    callback = hs.callbacks.LearnHyperparameters(
        (x_outer, y_outer),
        hs.estimators.HPOSGLD(0, 1),
        hyper_optimizer=keras.optimizers.SGD(1.0),
        chain="training",
    )
    (before,) = hs.find_hyperparameters(model)[0].hyperparameter_variables
    before = before.numpy()
    model.fit(x, y, batch_size=4, verbose=0, callbacks=[callback])
    (after,) = owner.hyperparameter_variables
    kernel = model.layers[-1].kernel.numpy()
    v = x_outer.T @ (x_outer @ kernel - y_outer) * 2 / y_outer.size
    scale = -np.expm1(-rate * h) / h
    by_strength = -scale * np.sum(v * 2 * start, axis=0)
    expected = by_strength * s * (1 - s / bound)  # ds/du of a sigmoid
    np.testing.assert_allclose(before - after.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "learns", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_two_replicas_take_the_steps_of_one(rng, mirrored, learns):
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))

    def fitted(scope):
        with scope:
            model, layer = dense("l2")
            data, arguments = {}, {}
            if learns:
                model = hs.BilevelModel(model)
                data["outer_data"] = x[:4], y[:4]
                arguments["hypergradient"] = hs.estimators.HPOSGLD(1, 1)
            sampler = exponential_sgld(0.05, 0.01)
            model.compile(optimizer=sampler, loss="mse", **arguments)
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0, **data)
        return [w.numpy() for w in (*layer.trainable_weights, *model.weights)]

    one, two = fitted(contextlib.nullcontext()), fitted(mirrored.scope())
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
