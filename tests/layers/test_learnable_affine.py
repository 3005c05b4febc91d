"""The learned affine augmentation, against closed forms and SciPy."""

import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import scipy.ndimage
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.layers import learnable_affine
from keras_hposgld.layers.learnable_affine import LearnableAffine

AMOUNTS = {"rotation": 40.0, "translation": 0.1, "scale": 0.3, "shear": 0.4}


@pytest.fixture
def draw(monkeypatch):
    """Lets a test choose the random numbers, in the order of the draws."""

    def choose(*numbers):
        left = list(numbers)

        def uniform(shape, seed):
            number = np.asarray(left.pop(0), keras.config.floatx())
            return tf.broadcast_to(tf.constant(number), shape)

        monkeypatch.setattr(learnable_affine, "_uniform", uniform)

    return choose


def set_range(layer, what, value):
    bound = layer.bounds[what]
    layer.ranges[what].assign(np.log(value / (bound - value)))


@pytest.mark.parametrize(
    "shape, number, turns",
    [
        ((2, 6, 6, 3), 0.5, -1),  # clockwise
        ((2, 7, 7, 1), -0.5, 1),
        ((2, 6, 6, 1), 1.0, 2),
        ((2, 5, 8, 1), -1.0, 2),
    ],
)
def test_right_angles_are_exact(draw, rng, shape, number, turns):
    x = rng.uniform(size=shape).astype("float32")
    layer = LearnableAffine(rotation=180.0, max_rotation=360.0)
    draw(number)
    moved = np.asarray(layer(x, training=True))
    # A float32 angle is off by 1e-7 of 5 pixels.
    np.testing.assert_allclose(
        moved, np.rot90(x, turns, axes=(1, 2)), atol=1e-5
    )


def test_shift_by_whole_pixels_fills_with_zeros(draw, rng):
    x = rng.uniform(size=(2, 8, 4, 2)).astype("float32")
    layer = LearnableAffine(translation=0.25)
    draw([[1.0, 1.0], [-1.0, 0.0]])  # 2 rows, 1 column; -2 rows
    moved = np.asarray(layer(x, training=True))
    expected = np.zeros_like(x)
    expected[0, :6, :3] = x[0, 2:, 1:]
    expected[1, 2:] = x[1, :6]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_all_transformations_together_are_those_of_scipy(draw, rng, float64):
    height, width, channels, batch = 9, 7, 2, 3
    x = rng.uniform(size=(batch, height, width, channels))
    layer = LearnableAffine(**AMOUNTS)
    numbers = [rng.uniform(-1, 1, (batch, n)) for n in (1, 2, 1, 1)]
    draw(*numbers)
    moved = np.asarray(layer(x, training=True))

    center = np.array([(height - 1) / 2, (width - 1) / 2])
    for index in range(batch):
        angle = np.deg2rad(AMOUNTS["rotation"] * numbers[0][index, 0])
        shift = AMOUNTS["translation"] * numbers[1][index] * [height, width]
        scale = np.exp(AMOUNTS["scale"] * numbers[2][index, 0])
        shear = AMOUNTS["shear"] * numbers[3][index, 0]
        turn = np.array(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        )
        matrix = turn @ [[1, shear], [0, 1]] / scale
        for channel in range(channels):
            # "grid-constant" fades to zero over a pixel, as the layer does.
            expected = scipy.ndimage.affine_transform(
                x[index, ..., channel],
                matrix,
                offset=center + shift - matrix @ center,
                order=1,
                mode="grid-constant",
            )
            np.testing.assert_allclose(
                moved[index, ..., channel], expected, atol=1e-12
            )


@pytest.mark.parametrize("what", list(AMOUNTS))
def test_derivative_by_each_range_is_that_of_differences(
    draw, rng, run, float64, what
):
    x = rng.uniform(size=(4, 9, 7, 2))
    weights = tf.constant(rng.normal(size=x.shape))
    numbers = [rng.uniform(-1, 1, (4, n)) for n in (1, 2, 1, 1)]
    layer = LearnableAffine(**AMOUNTS)
    variable = layer.ranges[what]

    def objective():
        draw(*numbers)
        return tf.reduce_sum(weights * layer(x, training=True))

    def derivative():
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variable.value)
            value = objective()
        return tape.gradient(value, variable.value)

    start, step = variable.numpy(), 1e-6
    slope = float(run(derivative))
    values = []
    for moved in (start - step, start + step):
        variable.assign(moved)
        values.append(float(objective()))
    # Central differences: cubic in the step, and the rounding of the values.
    expected = (values[1] - values[0]) / (2 * step)
    assert abs(expected) > 0.01
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_derivative_by_the_images_lets_it_stand_within_a_network(
    draw, rng, float64
):
    # The layer is linear in the images: both sides of <A x, y> = <x, A' y>.
    x, y = rng.normal(size=(2, 3, 6, 5, 2))
    layer = LearnableAffine(**AMOUNTS)
    draw(*[rng.uniform(-1, 1, (3, n)) for n in (1, 2, 1, 1)])
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(layer(x, training=True) * y)
    np.testing.assert_allclose(
        tf.reduce_sum(x * tape.gradient(value, x)), value, rtol=1e-12
    )


def test_images_pass_unchanged_in_inference(rng):
    x = rng.uniform(size=(2, 6, 6, 1)).astype("float32")
    layer = LearnableAffine(**AMOUNTS)
    state = layer.seed_generator.state.numpy()
    np.testing.assert_array_equal(layer(x, training=False), x)
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(layer.seed_generator.state, state)
    assert np.abs(layer(x, training=True) - x).max() > 0.05


def test_ranges_keep_to_their_bounds():
    layer = LearnableAffine(rotation=10.0, scale=0.5, max_rotation=45.0)
    values = layer.hyperparameter_values()
    np.testing.assert_allclose(list(values.values()), [10.0, 0.5], rtol=1e-6)
    for variable in layer.hyperparameter_variables:
        variable.assign(1e3)
    for value, bound in zip(
        layer.hyperparameter_values().values(), (45.0, 1.0), strict=True
    ):
        assert 0.999 * bound < value <= bound
    for variable in layer.hyperparameter_variables:
        variable.assign(-1e3)
    for value in layer.hyperparameter_values().values():
        assert 0 <= value < 1e-6


def test_amounts_are_uniform_within_the_range():
    layer = LearnableAffine(rotation=30.0, seed=3)
    angles = np.sort(layer._draw(20_000)["rotation"].numpy().ravel())
    # The distance of Kolmogorov and Smirnov exceeds 1.95 / sqrt(n) in one of a
    # thousand seeds.
    expected = np.linspace(-30.0, 30.0, len(angles))
    assert np.abs(angles - expected).max() / 60 < 1.95 / np.sqrt(len(angles))


def test_each_image_and_call_draws_anew_and_equal_seeds_agree(rng):
    x = np.repeat(rng.uniform(size=(1, 6, 6, 1)), 2, axis=0)
    one, two, other = (
        LearnableAffine(**AMOUNTS, seed=seed) for seed in (5, 5, 6)
    )
    first = np.asarray(one(x, training=True))
    assert np.abs(first[0] - first[1]).max() > 0.01
    np.testing.assert_array_equal(two(x, training=True), first)
    assert np.abs(other(x, training=True) - first).max() > 0.01
    assert np.abs(one(x, training=True) - first).max() > 0.01


def make_network(seed=0, **ranges):
    keras.utils.set_random_seed(0)
    ranges = ranges or {"rotation": 30.0, "shear": 0.2}
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            LearnableAffine(**ranges, seed=seed, name="affine"),
            keras.layers.Flatten(),
            keras.layers.Dense(5, "tanh"),
            keras.layers.Dense(3),
        ]
    )


def make_learner(estimator, temperature=0.0, seed=0, run_eagerly=True, **how):
    learner = hs.BilevelModel(make_network(seed), seed=1)
    learner.compile(
        optimizer=hs.SGLD(0.3, temperature=temperature, seed=2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        hypergradient=estimator,
        run_eagerly=run_eagerly,  # tracing takes longer than these chains
        **how,
    )
    return learner


def fit(learner, outer_iterations=1):
    """Some outer iterations; the hypergradients and outer loss of each."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.uniform(size=(60, 6, 6, 1)) + y[:, None, None, None] / 4
    seen = []
    learner.outer_level.observers[:] = [
        lambda estimate: seen.append(
            [*map(float, estimate.hypergradient), float(estimate.outer_loss)]
        )
    ]
    learner.fit(
        x[:30],
        y[:30],
        outer_data=(x[30:], y[30:]),
        batch_size=10,
        steps_per_epoch=outer_iterations * learner.hypergradient.num_steps,
        verbose=0,
    )
    return np.array(seen)


def test_chain_goes_on_drawing_and_hands_the_generator_on():
    learner = make_learner(hs.estimators.HPOSGLD(2, 3))
    generator = learner.model.get_layer("affine").seed_generator
    before = generator.state.numpy()
    fit(learner, outer_iterations=2)
    # Two draws in each of ten inner steps; inference draws nothing.
    np.testing.assert_array_equal(generator.state - before, [0, 20])


def test_each_inner_step_draws_other_transformations(rng):
    # With one image, and weights that stand all but still, the mean loss over
    # a chain is that of its first step if the steps draw the same.
    image, label = rng.uniform(size=(1, 6, 6, 1)), np.ones(1)
    means = []
    for num_steps in (1, 4):
        learner = make_learner(hs.estimators.HPOSGLD(0, num_steps))
        learner.optimizer.learning_rate = 1e-12
        history = learner.fit(
            image,
            label,
            outer_data=(image, label),
            batch_size=1,
            steps_per_epoch=1,
            verbose=0,
        )
        means.append(history.history["loss"][0])
    assert abs(means[1] / means[0] - 1) > 1e-3


@pytest.mark.slow
def test_hypergradient_is_the_slope_of_the_outer_loss(float64):
    # A chain at temperature 0 with its draws fixed by seeds is a function of
    # the range. Differences of it need no other code than the chain's.
    def run_chain(move=0.0, estimator=hs.estimators.RMD):
        learner = make_learner(estimator(num_steps=4))
        variable = learner.hyperparameters[0]
        assert variable.name == "rotation"
        variable.assign_add(move)
        return fit(learner)[0]

    step = 1e-5
    slope = (run_chain(step)[-1] - run_chain(-step)[-1]) / (2 * step)
    assert abs(slope) > 1e-5
    reverse = run_chain()
    np.testing.assert_allclose(reverse[0], slope, rtol=1e-5)
    forward = run_chain(estimator=hs.estimators.FMD)
    np.testing.assert_allclose(forward, reverse, rtol=1e-9)


@pytest.mark.slow
def test_equal_seeds_give_equal_runs_and_others_do_not():
    def run_chains(seed):
        estimator = hs.estimators.AdjointSGLD(0, 2)
        return fit(make_learner(estimator, 1e-4, seed), outer_iterations=2)

    first = run_chains(4)
    assert np.all(np.isfinite(first)) and np.all(first != 0)
    np.testing.assert_array_equal(run_chains(4), first)
    assert np.abs(run_chains(5) - first).max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"jit_compile": False}, {"jit_compile": True}])
def test_compiled_iterations_give_the_eager_result(how):
    results = []
    for arguments in ({"run_eagerly": True}, {"run_eagerly": False} | how):
        learner = make_learner(hs.estimators.HPOSGLD(0, 2), 1e-4, **arguments)
        x = np.random.default_rng(0).uniform(size=(40, 6, 6, 1))
        norms = learner.fit(
            x,
            np.arange(40) % 3,
            outer_split=0.5,
            batch_size=10,
            steps_per_epoch=2 * 2,
            verbose=0,
        ).history["hypergradient_norm"]
        results.append([norms, *learner.get_weights()])
    # The draws are the same; sums of float32 numbers are in another order.
    for eager, compiled in zip(*results, strict=True):
        np.testing.assert_allclose(compiled, eager, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_mixed_precision_interpolates_in_float32():
    before = keras.config.dtype_policy()
    expected = fit(make_learner(hs.estimators.HPOSGLD(1, 2)), 2)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        learner = make_learner(hs.estimators.HPOSGLD(1, 2))
        layer = learner.model.get_layer("affine")
        assert layer(tf.ones((1, 6, 6, 1)), training=True).dtype == "bfloat16"
        assert layer.ranges["rotation"].dtype == "float32"
        seen = fit(learner, 2)
    finally:
        keras.config.set_dtype_policy(before)
    # bfloat16 has 8 bits.
    np.testing.assert_allclose(seen[:, -1], expected[:, -1], rtol=0.02)
    assert np.all(np.isfinite(seen)) and np.all(seen[:, 0] != 0)


@pytest.mark.slow
def test_outer_images_open_the_range_or_close_it():
    # A bar at one angle or at a right angle to it, by its own label; in the
    # outer data bars of the first kind are turned, too.
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.uniform(0, 0.2, (400, 9, 9, 1)).astype("float32")
    x[:, 4, 2:7] += 1.0
    x[y == 1, 2:7, 2:4] += 1.0
    turn = keras.layers.RandomRotation(1 / 6, fill_mode="constant", seed=0)
    turned = np.asarray(turn(x[200:], training=True))
    ends = []
    for outer in (turned, x[200:]):
        keras.utils.set_random_seed(0)
        network = keras.Sequential(
            [
                keras.Input((9, 9, 1)),
                LearnableAffine(rotation=20.0, seed=0),
                keras.layers.Flatten(),
                keras.layers.Dense(32, "relu"),
                keras.layers.Dense(2),
            ]
        )
        learner = hs.BilevelModel(network, seed=0)
        learner.compile(
            optimizer=hs.SGLD(0.1, seed=0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            hypergradient=hs.estimators.HPOSGLD(0, 5),
            hyper_optimizer=keras.optimizers.Adam(0.1),
        )
        learner.fit(
            x[:200],
            y[:200],
            outer_data=(outer, y[200:]),
            batch_size=50,
            steps_per_epoch=40 * 5,
            verbose=0,
        )
        ends.append(float(*learner.hyperparameter_values().values()))
    assert ends[0] > 40.0
    assert ends[1] < 20.0


def test_saving_and_cloning_keep_what_they_should(tmp_path, rng):
    model = make_network(seed=7, rotation=30.0, translation=0.1)
    layer = model.get_layer("affine")
    set_range(layer, "rotation", 77.0)
    layer(rng.uniform(size=(1, 6, 6, 1)), training=True)  # the seed moves on
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded.get_layer("affine")
    values = [float(v) for v in again.hyperparameter_values().values()]
    np.testing.assert_allclose(values, [77.0, 0.1], rtol=1e-5)
    assert again.get_config() == layer.get_config()
    assert again.seed == 7
    # As with dropout, Keras keeps the seed and not how far it was used up.
    again.seed_generator.state.assign(layer.seed_generator.state)
    x = rng.uniform(size=(3, 6, 6, 1)).astype("float32")
    np.testing.assert_array_equal(
        loaded(x, training=True), model(x, training=True)
    )
    copy = keras.models.clone_model(model).get_layer("affine")
    values = [float(v) for v in copy.hyperparameter_values().values()]
    np.testing.assert_allclose(values, [30.0, 0.1], rtol=1e-5)


def test_learner_is_loaded_with_its_ranges(tmp_path):
    learner = make_learner(hs.estimators.HPOSGLD(1, 2))
    fit(learner)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    for old, new in zip(
        learner.hyperparameters, loaded.hyperparameters, strict=True
    ):
        np.testing.assert_array_equal(old, new)
    # As with dropout, Keras keeps the seed and not how far it was used up.
    old, new = (
        x.model.get_layer("affine").seed_generator for x in (learner, loaded)
    )
    new.state.assign(old.state)
    loaded.run_eagerly = True
    np.testing.assert_array_equal(fit(loaded), fit(learner))


@pytest.mark.slow
def test_exported_model_has_no_augmentation_and_loads_alone(tmp_path, rng):
    learner = make_learner(hs.estimators.HPOSGLD(1, 2))
    fit(learner)
    exported = learner.export()
    layer = exported.get_layer("affine")
    assert type(layer) is keras.layers.Identity
    x = rng.uniform(size=(4, 6, 6, 1)).astype("float32")
    expected = learner.predict(x, verbose=0)
    np.testing.assert_allclose(
        exported.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(exported(x, training=True), exported(x))

    exported.save(tmp_path / "plain.keras")
    np.savez(tmp_path / "arrays.npz", x=x, expected=expected)
    script = """
        import sys
        sys.modules["keras_hposgld"] = None  # cannot be imported
        import keras
        import numpy as np
        arrays = np.load("arrays.npz")
        model = keras.models.load_model("plain.keras")
        np.testing.assert_allclose(
            model(arrays["x"]), arrays["expected"], rtol=1e-5, atol=1e-6
        )
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        cwd=tmp_path,
        env=os.environ,
    )


def test_refit_trains_with_the_learned_range_held_fixed():
    learner = make_learner(hs.estimators.HPOSGLD(1, 2))
    set_range(learner.model.get_layer("affine"), "rotation", 66.0)
    weights = [w.numpy() for w in learner.trainable_variables]
    x = np.random.default_rng(0).uniform(size=(20, 6, 6, 1))
    history = learner.refit(x, np.arange(20) % 3, epochs=2, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))
    values = [float(v) for v in learner.hyperparameter_values().values()]
    np.testing.assert_allclose(values, [66.0, 0.2], rtol=1e-5)
    for old, new in zip(weights, learner.trainable_variables, strict=True):
        assert not np.any(np.all(old == new))


def test_range_of_a_plain_fit_is_a_constant():
    model = make_network()
    model.compile("sgd", loss="mse")
    before = [v.numpy() for v in model.get_layer("affine").ranges.values()]
    model.fit(np.ones((8, 6, 6, 1)), np.ones((8, 3)), verbose=0)
    after = [v.numpy() for v in model.get_layer("affine").ranges.values()]
    assert before == after


def test_predictions_are_averaged_over_transformations(draw, rng):
    # A network that returns the sum of the left half sees what was turned.
    x = rng.uniform(size=(2, 6, 6, 1)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            LearnableAffine(rotation=180.0, max_rotation=360.0),
            keras.layers.Flatten(),
            keras.layers.Dense(1, use_bias=False),
        ]
    )
    half = np.zeros((6, 6))
    half[:, :3] = 1.0
    model.layers[-1].kernel.assign(half.reshape(-1, 1))
    draw(0.0, 0.5, 1.0, -0.5)
    averaged = hs.layers.average_predictions(model, x, num_samples=4)
    # Over the four right angles each pixel is in the left half two times.
    expected = x.sum(axis=(1, 2)) / 2
    np.testing.assert_allclose(averaged, expected, rtol=1e-4)
    # And afterwards the model is as it was: no draws are left.
    np.testing.assert_allclose(
        model(x)[:, 0], (x[..., 0] * half).sum(axis=(1, 2)), rtol=1e-5
    )


def test_averaging_stops_transforming_even_after_an_error(rng):
    model = make_network()
    with pytest.raises(ValueError):
        hs.layers.average_predictions(model, np.ones((2, 5, 5, 1)))
    x = rng.uniform(size=(2, 6, 6, 1)).astype("float32")
    np.testing.assert_array_equal(model.get_layer("affine")(x), x)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "must be given a range"),
        ({"rotation": 180.0}, "`rotation` must lie between 0 and 180.0"),
        ({"shear": 0.0}, "`shear` must lie between"),
        ({"scale": -0.1}, "`scale` must lie between"),
        ({"translation": float("nan")}, "`translation` must lie between"),
        ({"rotation": 1.0, "max_rotation": 0.0}, "`max_rotation` must be a"),
        ({"rotation": 1.0, "max_shear": None}, "`max_shear` must be a"),
        ({"rotation": 1.0, "seed": -1}, "`seed` must be an integer"),
    ],
)
def test_ranges_out_of_bounds_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LearnableAffine(**arguments)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="takes images"):
        LearnableAffine(rotation=1.0)(tf.ones((2, 5)))
    with pytest.raises(ValueError, match="fixed size"):
        LearnableAffine(rotation=1.0)(keras.Input((None, 6, 1)))
    plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="0 such layers"):
        hs.layers.average_predictions(plain, np.ones((1, 3)))
    with pytest.raises(ValueError, match="num_samples=0"):
        hs.layers.average_predictions(
            make_network(), np.ones((1, 6, 6, 1)), num_samples=0
        )
