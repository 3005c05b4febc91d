"""The sampler: its law, its determinism, and its life as a Keras optimizer."""

import keras
import numpy as np
import problems
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.core import one_pass
from keras_hposgld.samplers import noise as noise_of


@pytest.mark.parametrize("noise", ["gaussian", "rademacher"])
@pytest.mark.parametrize("temperature, noise_scale", [(0.5, 0.6), (2.0, 1.0)])
def test_chain_follows_its_exact_law(run, noise, temperature, noise_scale):
    # On energy = 0.5 * curvature * w**2 the chain is an AR(1) process: its
    # mean and variance after k steps are known, no tolerance is guessed.
    curvature, alpha, num_steps, num_chains = 3.0, 0.1, 12, 200_000
    means, variances = problems.autoregression_moments(
        1 - alpha * curvature,
        2 * alpha * temperature * noise_scale**2,
        1.5,
        num_steps,
    )
    sampler = hs.SGLD(alpha, temperature, noise_scale, noise)

    def chain():
        params = [tf.fill([num_chains], tf.constant(1.5, tf.float64))]
        for step in range(num_steps):
            gradients = [curvature * params[0]]
            params = sampler.move(params, gradients, step, tf.constant([7, 0]))
        return params[0]

    draws = run(chain).numpy()
    assert abs(draws.mean() - means[-1]) < 4 * np.sqrt(
        variances[-1] / num_chains
    )
    deviations = (draws - draws.mean()) ** 2
    assert abs(deviations.mean() - variances[-1]) < 4 * (
        deviations.std() / np.sqrt(num_chains)
    )


def test_gaussian_noise_is_gaussian():
    draws = noise_of.unit_noise(
        (1_000_000,), tf.float64, "gaussian", tf.constant([1, 2])
    ).numpy()
    # Moments of the standard normal, to 5 standard errors each.
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        sample = draws**power
        error = 5 * sample.std() / np.sqrt(len(draws))
        assert abs(sample.mean() - moment) < error, power
    # The two halves come from one pair of uniforms: they are uncorrelated.
    half = len(draws) // 2
    assert abs(np.corrcoef(draws[:half], draws[half : 2 * half])[0, 1]) < 0.008


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_gaussian_noise_is_finite_for_every_random_word(monkeypatch, dtype):
    words = tf.constant([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1])
    monkeypatch.setattr(
        noise_of, "_random_words", lambda shape, seed: tf.stack([words, words])
    )
    draws = noise_of.unit_noise((12,), dtype, "gaussian", None)
    assert np.all(np.isfinite(tf.cast(draws, tf.float64)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_has_the_noise_of_float32_rounded(run, dtype):
    # Drawn in half precision, every number was NaN (float16), or the tails
    # were cut off at 3.5 standard deviations (bfloat16).
    seed = tf.constant([1, 2])

    def draw(dtype):
        return noise_of.unit_noise((100_001,), dtype, "gaussian", seed)

    half = tf.cast(run(lambda: draw(tf.as_dtype(dtype))), tf.float64)
    wide = run(lambda: draw(tf.float64))
    np.testing.assert_allclose(half, wide, rtol=8e-3, atol=1e-3)
    assert np.abs(half).max() > 4.0


def test_rademacher_noise_is_plus_or_minus_one():
    draws = noise_of.unit_noise(
        (3, 33), tf.float32, "rademacher", tf.constant([1, 2])
    ).numpy()
    assert set(np.unique(draws)) == {-1.0, 1.0}


@pytest.mark.parametrize("integrator", ["euler", "averaged"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_weights_take_the_same_rademacher_step(
    run, dtype, integrator, monkeypatch
):
    # Where the pass over the weights is compiled, and where it is not.
    param = tf.random.stateless_normal([5, 41], [1, 2], dtype=dtype)
    sampler = hs.SGLD(
        0.03, 0.2, noise_scale=1.3, noise="rademacher", integrator=integrator
    )

    def step():
        return sampler.step(
            [param], [3.0 * param], None, {}, 0, tf.constant([3, 4])
        )[0][0]

    small = step()
    monkeypatch.setattr(one_pass, "COMPILED_SIZE", 200)
    np.testing.assert_allclose(run(step), small, rtol=1e-6, atol=1e-7)
    noise = (small - (1.0 - 0.09) * param) / (1.3 * np.sqrt(2 * 0.03 * 0.2))
    # The mean of two signs is one of them, or zero.
    levels = np.round(np.abs(noise))
    np.testing.assert_allclose(np.abs(noise), levels, rtol=1e-5, atol=1e-5)
    assert set(levels.ravel()) == ({1.0} if integrator == "euler" else {0, 1})


def test_only_large_weights_have_their_step_compiled():
    sampler = hs.SGLD(0.1, temperature=0.2, noise="rademacher")

    def functions(shape):
        step = tf.function(
            lambda param: sampler.step(
                [param], [param], None, {}, 0, tf.constant([3, 4])
            ),
            autograph=False,
        )
        specification = tf.TensorSpec(shape, tf.float32)
        graph = step.get_concrete_function(specification).graph
        return [
            function.attr["_XlaMustCompile"].b
            for function in graph.as_graph_def().library.function
        ]

    assert any(functions([256, 256]))
    assert not any(functions([256, 255]))
    assert not any(functions([None, 256]))


@pytest.mark.parametrize("steps", [(150_032, 192_687), (3, 3 + 2**32)])
def test_no_two_steps_of_a_chain_have_the_same_noise(run, steps):
    # With the 32 bits that keys had, the first two did; the counter of steps
    # began anew after 2**32.
    sampler = hs.SGLD(0.1, temperature=1.0, seed=0)

    def move(step):
        step = tf.constant(step, tf.int64)
        return sampler.move(
            [tf.zeros([50])], [tf.zeros([50])], step, sampler.chain_seed
        )[0]

    first, second = (run(lambda step=step: move(step)) for step in steps)
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize("seeds", [(140_022, 141_323), (5, 2**32 + 5)])
def test_unequal_seeds_give_unequal_chains(seeds):
    problem = hs.BilevelProblem(
        lambda h, w, b: (w - 1) ** 2 + h * w**2, lambda h, w, b: (w - 0.5) ** 2
    )
    sampler = hs.SGLD(0.1, temperature=0.1)
    first, second = (
        hs.hypergradient(problem, 0.1, 0.0, sampler=sampler, seed=seed)
        for seed in seeds
    )
    assert float(first.hypergradient) != float(second.hypergradient)
    keys = [hs.SGLD(seed=seed).chain_seed.numpy().tolist() for seed in seeds]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_is_the_same_in_every_mode(run, dtype):
    sampler = hs.SGLD(0.1, temperature=1.0, momentum=0.5, integrator="averaged")
    params = [tf.zeros([3, 7], dtype), tf.zeros([100], dtype)]

    def move():
        return sampler.move(params, params, 2**40, sampler.chain_seed)

    for value, eager in zip(run(move), move(), strict=True):
        np.testing.assert_allclose(value, eager, rtol=2e-5, atol=1e-6)


def test_noise_differs_between_steps_weights_and_seeds():
    sampler = hs.SGLD(0.1, temperature=1.0)

    def move(step, seed):
        zeros = [tf.zeros([1000]), tf.zeros([1000])]
        return sampler.move(zeros, zeros, step, tf.constant([seed, 0]))

    draws = np.array([*move(0, 1), *move(1, 1), *move(0, 2), *move(1, 2)])
    correlations = np.corrcoef(draws) - np.eye(len(draws))
    # Independent rows: standard error 1 / sqrt(1000).
    assert np.abs(correlations).max() < 5 / np.sqrt(1000)


def make_model(regularizer=None):
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, "relu", kernel_regularizer=regularizer),
            keras.layers.Dense(1),
        ]
    )


def train(optimizer, rng_seed=0, callbacks=None, epochs=2):
    keras.utils.set_random_seed(3)
    model = make_model()
    model.compile(optimizer, loss="mse")
    rng = np.random.default_rng(rng_seed)
    x, y = rng.normal(size=(32, 3)), rng.normal(size=(32, 1))
    model.fit(
        x,
        y,
        batch_size=8,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    return model.get_weights()


def test_temperature_zero_is_gradient_descent_bit_for_bit():
    for ours, plain in zip(
        train(hs.SGLD(0.05, temperature=0.0)),
        train(keras.optimizers.SGD(0.05)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_momentum_is_that_of_keras_bit_for_bit(momentum):
    for ours, plain in zip(
        train(hs.SGLD(0.05, momentum=momentum)),
        train(keras.optimizers.SGD(0.05, momentum=momentum)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, plain)


@pytest.mark.parametrize(
    "clipping",
    [{"clipnorm": 0.1}, {"clipvalue": 0.02}, {"global_clipnorm": 0.2}],
)
def test_clipping_is_that_of_keras(clipping):
    clipped = train(hs.SGLD(0.05, **clipping))
    for ours, plain in zip(
        clipped, train(keras.optimizers.SGD(0.05, **clipping)), strict=True
    ):
        np.testing.assert_array_equal(ours, plain)
    assert np.any(clipped[0] != train(hs.SGLD(0.05))[0])


def test_keras_training_takes_the_steps_of_the_chain():
    # One transition: a chain by hand on the gradients of the model ends where
    # model.fit does, noise included.
    sampler = hs.SGLD(0.05, temperature=0.01, seed=5)
    ended = train(sampler, epochs=2)

    keras.utils.set_random_seed(3)
    model = make_model()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 3)).astype("float32")
    y = rng.normal(size=(32, 1)).astype("float32")
    for step in range(8):
        rows = slice(8 * (step % 4), 8 * (step % 4) + 8)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x[rows]) - y[rows]) ** 2)
        weights = model.trainable_variables
        gradients = tape.gradient(loss, [w.value for w in weights])
        moved = sampler.move(
            [tf.convert_to_tensor(w.value) for w in weights],
            gradients,
            step,
            sampler.chain_seed,
        )
        for weight, value in zip(weights, moved, strict=True):
            weight.assign(value)
    for chain, fitted in zip(model.get_weights(), ended, strict=True):
        # The gradients of the two programs differ in the last bits.
        np.testing.assert_allclose(chain, fitted, rtol=1e-4, atol=1e-6)


def test_equal_seeds_give_equal_training_bit_for_bit():
    first, second, other = (
        train(hs.SGLD(0.05, temperature=0.01, seed=seed)) for seed in (1, 1, 2)
    )
    for a, b, c in zip(first, second, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.any(a != c)


def test_seed_comes_from_keras_where_none_is_given():
    seeds = []
    for global_seed in (1, 1, 2):
        keras.utils.set_random_seed(global_seed)
        seeds.append(hs.SGLD().seed)
    assert seeds[0] == seeds[1] != seeds[2]


def test_schedule_and_scheduler_callback_change_the_steps():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [3], [0.05, 0.01]
    )
    by_callback = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: 0.05 if epoch == 0 else 0.01
    )
    scheduled = train(hs.SGLD(schedule))
    for a, b, plain in zip(
        scheduled,
        train(hs.SGLD(0.05), callbacks=[by_callback]),
        train(hs.SGLD(0.05)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
        assert np.any(a != plain)


def test_learning_rate_is_exact_in_float64_until_it_is_changed():
    sampler = hs.SGLD(0.05)
    assert float(sampler.learning_rate_at(0, "float64")) == 0.05
    sampler.learning_rate = 0.1
    assert float(sampler.learning_rate_at(0, "float64")) == np.float32(0.1)


def test_config_round_trip_keeps_every_argument():
    sampler = hs.SGLD(
        keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5),
        temperature=0.25,
        noise_scale=0.5,
        noise="rademacher",
        seed=11,
        global_clipnorm=3.0,
        name="mine",
        momentum=0.3,
        integrator="averaged",
    )
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(sampler))
    assert copy.get_config() == sampler.get_config()
    assert hs.SGLD(0.05).get_config()["learning_rate"] == 0.05


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"learning_rate": 0.0}, "`learning_rate` must be a finite number ab"),
        ({"learning_rate": -1}, "`learning_rate` must be a finite number ab"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite"),
        ({"temperature": -1.0}, "`temperature` must be a finite number"),
        ({"temperature": float("nan")}, "`temperature` must be a finite"),
        ({"noise_scale": float("inf")}, "`noise_scale` must be a finite"),
        ({"noise": "uniform"}, "`noise` must be one of"),
        ({"momentum": 1.0}, "`momentum` must be .* 0 or above and below 1"),
        ({"momentum": -0.1}, "`momentum` must be a finite number"),
        ({"integrator": "leapfrog"}, "`integrator` must be one of"),
        ({"clipnorm": -1}, "`clipnorm` must be a finite number above 0"),
        ({"seed": 1.5}, "`seed` must be"),
        ({"seed": True}, "`seed` must be"),
        ({"seed": 2**64}, "`seed` must be"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        hs.SGLD(**arguments)
    (name,) = arguments
    assert f"Received: {name}=" in str(error.value)


@pytest.mark.parametrize("integrator", ["euler", "averaged"])
@pytest.mark.parametrize("momentum", [0.0, 0.6])
@pytest.mark.parametrize("make", [hs.SGLD, hs.PSGLD])
def test_law_of_a_quadratic(make, momentum, integrator):
    # A linear step has a Gaussian law, whose variance follows from the step
    # alone: x' = T x + n, with the law of averaged noise enlarged by the noise
    # that the next step shares.
    alpha, tau, curvature, num_chains = 0.1, 0.4, 2.0, 60_000
    sampler = make(alpha, tau, momentum=momentum, integrator=integrator, seed=3)
    scale = 1.0
    state = sampler.init([tf.zeros([num_chains], tf.float64)])
    if make is hs.PSGLD:
        scale = 0.7
        state["preconditioner"] = [
            tf.fill([num_chains], tf.cast(0.7, "float64"))
        ]

    @tf.function(autograph=False, jit_compile=True)
    def chain():
        def body(step, w, state):
            (w,), state = sampler.step(
                [w], [curvature * w], None, state, step, sampler.chain_seed
            )
            return step + 1, w, state

        return tf.while_loop(
            lambda step, *_: step < 80,
            body,
            (tf.constant(0), tf.zeros([num_chains], tf.float64), state),
        )[1]

    # In (M, w): M' = mu M + a k w - s z; w' = w - M'.
    a, s = alpha * scale, np.sqrt(2 * (1 - momentum) * alpha * scale * tau)
    transfer = np.array(
        [[momentum, a * curvature], [-momentum, 1 - a * curvature]]
    )
    noise = np.array([-s, s])
    if integrator == "averaged":
        # The state is widened by the number that two steps share.
        transfer = np.block(
            [[transfer, noise[:, None] / 2], [np.zeros((1, 3))]]
        )
        noise = np.append(noise / 2, 1.0)
    covariance = np.zeros_like(transfer)
    for _ in range(2000):
        covariance = transfer @ covariance @ transfer.T + np.outer(noise, noise)
    expected = covariance[1, 1]
    np.testing.assert_allclose(
        np.var(chain()), expected, rtol=5 * np.sqrt(2 / num_chains)
    )
    if integrator == "averaged":  # the exact law, at any step size
        np.testing.assert_allclose(expected, tau / curvature, rtol=1e-9)


def test_a_subclass_with_scales_of_its_own_is_asked_for_them():
    class Doubled(hs.SGLD):
        """Moves the weights as `SGLD`, and says twice the force scale."""

        def force_scale(self, vector, state, index):
            parts = super().force_scale(vector, state, index)
            return [2.0 * part for part in parts]

    class Faster(hs.SGLD):
        def velocity_scale(self, vector, state, index):
            return [3.0 * part for part in vector]

    problem = hs.BilevelProblem(
        lambda h, w, batch: tf.reduce_sum((w - 1.0) ** 2 + h * w**2),
        lambda h, w, batch: tf.reduce_sum((w - 0.5) ** 2),
    )

    def hypergradient(kind):
        return hs.hypergradient(
            *(problem, 0.3, tf.zeros([2])), sampler=kind(0.125, seed=0)
        ).hypergradient

    once = hypergradient(hs.SGLD)
    assert once != 0.0
    np.testing.assert_allclose(hypergradient(Doubled), 2.0 * once, rtol=1e-6)
    np.testing.assert_allclose(hypergradient(Faster), 3.0 * once, rtol=1e-6)
