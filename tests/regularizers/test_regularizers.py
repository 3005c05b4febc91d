"""Learnable regularizers as citizens of Keras."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import keras_hposgld as hs
from keras_hposgld.hyperparameters import bijectors

KINDS = {
    "l1": hs.regularizers.LearnableL1,
    "l2": hs.regularizers.LearnableL2,
    "l1l2": hs.regularizers.LearnableL1L2,
}
PLAIN = {
    "l1": keras.regularizers.L1,
    "l2": keras.regularizers.L2,
    "l1l2": keras.regularizers.L1L2,
}


def make_model(*regularizers, units=(4, 4)):
    """A dense network with one regularizer a kernel."""
    return keras.Sequential(
        [
            keras.Input((4,)),
            *(
                keras.layers.Dense(size, kernel_regularizer=regularizer)
                for size, regularizer in zip(units, regularizers, strict=True)
            ),
        ]
    )


def scatter(owners, rng):
    """Sets all unconstrained variables to random values."""
    for owner in owners:
        for variable in owner.hyperparameter_variables:
            variable.assign(rng.normal(-2, 1, variable.shape))


def total_penalty(model):
    return float(sum(model.losses))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "granularity", ["parameter", "input", "output", "tensor"]
)
def test_starts_as_the_plain_regularizer(kind, granularity):
    for layer, shape in (
        (keras.layers.Dense(3, kernel_regularizer=None), (None, 5)),
        (keras.layers.Conv2D(3, 2, kernel_regularizer=None), (None, 6, 6, 2)),
    ):
        layer.kernel_regularizer = KINDS[kind](0.01, granularity=granularity)
        layer.build(shape)
        plain = PLAIN[kind](*[0.01] * (2 if kind == "l1l2" else 1))
        np.testing.assert_allclose(
            layer.losses[0], plain(layer.kernel), rtol=1e-5
        )


@pytest.mark.parametrize(
    "granularity, dense, convolution, axes",
    [
        ("parameter", (5, 3), (2, 2, 4, 3), None),
        ("input", (5,), (4,), -2),
        ("output", (3,), (3,), -1),
        ("tensor", (), (), ()),
    ],
)
def test_strengths_multiply_what_the_granularity_says(
    rng, granularity, dense, convolution, axes
):
    for shape, expected in (((5, 3), dense), ((2, 2, 4, 3), convolution)):
        weight = keras.Variable(rng.normal(size=shape), dtype="float64")
        owner = hs.regularizers.LearnableL2(0.01, granularity=granularity)
        penalty = owner.attach(weight)
        (variable,) = owner.hyperparameter_variables
        assert tuple(variable.shape) == expected
        scatter([owner], rng)
        strength = 10.0 / (1.0 + np.exp(-variable.numpy()))
        if axes == -2:
            strength = strength[:, None]
        np.testing.assert_allclose(
            penalty(weight), np.sum(strength * weight.numpy() ** 2), rtol=1e-12
        )


def test_strengths_stay_within_their_bound_and_finite():
    weight = keras.Variable(np.ones((2, 3)), dtype="float32")
    for bijector in (None, tfp.bijectors.Exp()):
        owner = hs.regularizers.LearnableL2(
            0.1, max_value=2.0, bijector=bijector
        )
        owner.attach(weight)
        (variable,) = owner.hyperparameter_variables
        for extreme in (-1e30, -50.0, 50.0, 1e30):
            variable.assign(tf.fill(variable.shape, extreme))
            (strength,) = owner.hyperparameter_values().values()
            assert np.all(np.isfinite(strength))
            assert np.all((strength >= 0) & (strength <= 2.0))
        weight.regularizer = None


@pytest.mark.parametrize(
    "bijector", [tfp.bijectors.Exp(), tfp.bijectors.Softplus()]
)
def test_strength_above_its_bound_comes_back(bijector, run):
    owner = hs.regularizers.LearnableL2(
        0.5, "tensor", max_value=1.0, bijector=bijector
    )
    weight = keras.Variable(np.ones((2, 2)), dtype="float32")
    penalty = owner.attach(weight)
    (variable,) = owner.hyperparameter_variables
    variable.assign(1.5)  # a strength of 4.5, or of 1.7
    slope = tf.exp(bijector.forward_log_det_jacobian(variable.value))
    weight = tf.ones((2, 2))

    def gradient_and_mixed():
        with tf.GradientTape() as outer_tape:
            outer_tape.watch(variable.value)
            with tf.GradientTape() as tape:
                tape.watch(weight)
                value = penalty(weight)
            gradient = tape.gradient(value, weight)
        return gradient, outer_tape.gradient(gradient, variable.value)

    gradient, mixed = run(gradient_and_mixed)
    # The strength is the bound; its derivative is that of the bijector.
    np.testing.assert_allclose(gradient, np.full((2, 2), 2.0))
    np.testing.assert_allclose(mixed, 4 * 2.0 * slope, rtol=1e-6)
    for _ in range(20):
        _, mixed = run(gradient_and_mixed)
        variable.assign_sub(0.05 * mixed)
    assert float(owner.constrain(variable)) < 0.9


@pytest.mark.parametrize("alias", ["hpo_sgld", "rmd", "fmd", "ift_cg"])
@pytest.mark.parametrize("jit_compile", [False, True])
def test_given_bijector_serves_every_estimator(alias, jit_compile):
    # The same map as the default one, by a bijector of the user's own.
    own = tfp.bijectors.Sigmoid(np.float64(0.0), np.float64(2.0))
    sampler = hs.SGLD(0.05)
    estimates = []
    for bijector in (None, own):
        owner = hs.regularizers.LearnableL2(max_value=2.0, bijector=bijector)

        def inner(u, w, batch, owner=owner):
            penalty = tf.reduce_sum(owner.constrain(u) * w**2)
            return tf.reduce_sum((w - 1.0) ** 2) + penalty

        @tf.function(jit_compile=jit_compile, autograph=False)
        def estimate(u, inner=inner):
            problem = hs.BilevelProblem(
                inner, lambda u, w, batch: tf.reduce_sum((w - 0.3) ** 2)
            )
            return hs.hypergradient(
                problem,
                u,
                tf.zeros([3], tf.float64),
                estimator=alias,
                sampler=sampler,
            ).hypergradient

        estimates.append(estimate(tf.constant([-1.0, 0.0, 2.0], tf.float64)))
    assert np.all(np.abs(estimates[0]) > 1e-3)
    np.testing.assert_allclose(estimates[1], estimates[0], rtol=1e-10)


def test_given_bijector_maps_the_strengths_and_is_saved(rng):
    bijector = tfp.bijectors.Chain(
        [tfp.bijectors.Scale(np.float32(3.0)), tfp.bijectors.Softplus()]
    )
    owner = hs.regularizers.LearnableL2(0.3, bijector=bijector)
    weight = rng.normal(size=(2, 2)).astype("float32")
    variable = keras.Variable(weight)
    penalty = owner.attach(variable)
    np.testing.assert_allclose(
        penalty(weight), 0.3 * np.sum(weight**2), rtol=1e-5
    )
    np.testing.assert_allclose(
        next(iter(owner.hyperparameter_values().values())), 0.3, rtol=1e-5
    )
    scatter([owner], rng)
    (variable,) = owner.hyperparameter_variables
    copy = type(owner).from_config(owner.get_config())
    np.testing.assert_allclose(
        copy.constrain(variable),
        3.0 * np.log1p(np.exp(variable.numpy())),
        rtol=1e-5,
    )


def test_bijector_of_another_make_cannot_be_saved():
    class Mine(tfp.bijectors.Exp):
        pass

    with pytest.raises(ValueError, match="`bijector` can be saved only"):
        bijectors.serialize(Mine())


def test_center_pulls_to_the_value_at_the_start(rng):
    for kind, power in (("l1", 1), ("l2", 2)):
        model = make_model(
            KINDS[kind](0.5, granularity="tensor", center="initial"),
            None,
        )
        assert total_penalty(model) == 0.0
        kernel = model.layers[0].kernel
        move = rng.normal(size=kernel.shape).astype("float32")
        kernel.assign(kernel + move)
        np.testing.assert_allclose(
            total_penalty(model), 0.5 * np.sum(np.abs(move) ** power), rtol=1e-5
        )


def test_plain_fit_uses_strengths_as_constants():
    def fit(regularizer):
        keras.utils.set_random_seed(1)
        model = make_model(regularizer, regularizer)
        model.compile(keras.optimizers.SGD(0.05), loss="mse")
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(32, 4)), rng.normal(size=(32, 4))
        history = model.fit(x, y, epochs=3, verbose=0, shuffle=False)
        return model, history.history["loss"]

    learned, losses = fit(hs.regularizers.LearnableL2(0.02))
    plain, plain_losses = fit(keras.regularizers.L2(0.02))
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    for owner in hs.find_hyperparameters(learned):
        for value in owner.hyperparameter_values().values():
            np.testing.assert_allclose(value, 0.02, rtol=1e-5)
    for a, b in zip(
        learned.trainable_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("center", [None, "initial"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_has_its_strengths_again(tmp_path, rng, kind, center):
    model = make_model(
        KINDS[kind](0.1, granularity="input", center=center),
        KINDS[kind](0.1, center=center),
    )
    scatter(hs.find_hyperparameters(model), rng)
    for weight in model.trainable_variables:
        weight.assign(weight + 0.3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(total_penalty(loaded), total_penalty(model))
    assert len(loaded.weights) == len(model.weights)


def test_one_instance_on_two_layers_has_strengths_for_each(tmp_path, rng):
    for units in ((4, 4), (4, 2)):
        shared = hs.regularizers.LearnableL2(0.1)
        model = make_model(shared, shared, units=units)
        (owner,) = hs.find_hyperparameters(model)
        assert owner is shared
        assert [tuple(v.shape) for v in owner.hyperparameter_variables] == [
            (4, units[0]),
            (4, units[1]),
        ]
        scatter([owner], rng)
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(total_penalty(loaded), total_penalty(model))
        # Each strength came back to its own weight.
        for layer in range(2):
            for m in (model, loaded):
                m.layers[1 - layer].kernel.assign(
                    tf.zeros_like(m.layers[1 - layer].kernel)
                )
            np.testing.assert_allclose(
                total_penalty(loaded), total_penalty(model)
            )
            for m in (model, loaded):
                m.layers[1 - layer].kernel.assign(
                    tf.ones_like(m.layers[1 - layer].kernel)
                )


def test_multi_head_attention_gets_strengths_for_each_kernel(tmp_path, rng):
    inputs = keras.Input((5, 6))
    outputs = keras.layers.MultiHeadAttention(
        2, 3, kernel_regularizer=hs.regularizers.LearnableL2(0.1)
    )(inputs, inputs)
    model = keras.Model(inputs, outputs)
    (owner,) = hs.find_hyperparameters(model)
    assert len(owner.hyperparameter_variables) == 4
    scatter([owner], rng)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        total_penalty(loaded), total_penalty(model), rtol=1e-6
    )


def test_clone_starts_anew_and_takes_the_weights(rng):
    model = make_model(*(hs.regularizers.LearnableL2(0.1) for _ in range(2)))
    scatter(hs.find_hyperparameters(model), rng)
    clone = keras.models.clone_model(model)
    for owner in hs.find_hyperparameters(clone):
        for value in owner.hyperparameter_values().values():
            np.testing.assert_allclose(value, 0.1, rtol=1e-5)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(total_penalty(clone), total_penalty(model))


@pytest.mark.parametrize("is_used", [False, True])
def test_load_weights_into_a_model_used_or_not(tmp_path, rng, is_used):
    def make():
        return make_model(*(hs.regularizers.LearnableL2(0.1) for _ in "ab"))

    model = make()
    scatter(hs.find_hyperparameters(model), rng)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = make()
    if is_used:
        hs.find_hyperparameters(fresh)
    fresh.load_weights(tmp_path / "model.weights.h5")
    hs.find_hyperparameters(fresh)
    np.testing.assert_allclose(total_penalty(fresh), total_penalty(model))


def test_summary_counts_the_strengths_as_not_trainable():
    model = make_model(hs.regularizers.LearnableL2(granularity="input"), None)
    hs.find_hyperparameters(model)
    lines = []
    model.summary(print_fn=lambda line, **kwargs: lines.append(line))
    text = "\n".join(lines)
    assert "Trainable params: 40" in text
    assert "Non-trainable params: 4 " in text


@pytest.fixture
def mixed_bfloat16():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


def test_mixed_precision_keeps_the_penalty_in_float32(mixed_bfloat16):
    model = make_model(hs.regularizers.LearnableL2(0.1), None)
    (loss,) = model.losses
    assert loss.dtype == tf.float32
    (owner,) = hs.find_hyperparameters(model)
    assert owner.hyperparameter_variables[0].dtype == "float32"


def test_tensor_of_an_unseen_weight_is_refused():
    owner = hs.regularizers.LearnableL2()
    with pytest.raises(RuntimeError, match="find_hyperparameters"):
        owner(tf.ones([2, 2]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"initial_value": 0.0}, "`initial_value` must lie between 0 and"),
        ({"initial_value": 10.0}, "`initial_value` must lie between 0 and"),
        ({"initial_value": float("nan")}, "`initial_value` must lie between"),
        ({"max_value": -1.0}, "`max_value` must be a finite number above 0"),
        ({"max_value": float("inf")}, "`max_value` must be a finite number"),
        ({"max_value": None}, "`max_value` must be a finite number"),
        ({"initial_value": "1"}, "`initial_value` must lie between"),
        ({"initial_value": [1.0]}, "`initial_value` must be a number"),
        ({"granularity": "row"}, "`granularity` must be one of"),
        ({"center": "last"}, "`center` must be one of"),
        ({"center": np.zeros(2)}, "`center` must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        hs.regularizers.LearnableL2(**arguments)
    (name,) = arguments
    assert f"{name}=" in str(error.value).split("Received:")[1]


def test_weight_without_the_axis_is_refused():
    owner = hs.regularizers.LearnableL2(granularity="input")
    with pytest.raises(ValueError, match="a weight of shape"):
        owner.attach(keras.Variable(np.ones(3)))
