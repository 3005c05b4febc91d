"""Chains whose steps are those of `fit` itself."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs

STEPS = 4
E = hs.estimators


def make_data(n=96, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype("float32")
    y = x[:, :1] - x[:, 1:2] + 0.5 * rng.normal(size=(n, 1))
    return x, y.astype("float32")


def penalty(**arguments):
    defaults = dict(granularity="input", max_value=5.0)
    return hs.regularizers.LearnableL2(0.05, **defaults | arguments)


def make_model(optimizer="adam", regularizer=penalty, noisy=False, **arguments):
    """A small network; a noisy one has dropout and batch normalization."""
    keras.utils.set_random_seed(4)
    strength = regularizer() if regularizer else None
    layers = [keras.layers.Dense(8, "tanh", kernel_regularizer=strength)]
    if noisy:
        layers += [
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
        ]
    last = keras.layers.Dense(1, dtype="float32")
    model = keras.Sequential([keras.Input((6,)), *layers, last])
    model.compile(optimizer, loss="mse", metrics=["mae"], **arguments)
    return model


def make_callback(**arguments):
    defaults = dict(
        outer_data=make_data(16, seed=1),
        estimator=E.HPOSGLD(1, STEPS - 1),
        hyper_optimizer=keras.optimizers.Adam(0.1),
        batch_size=16,
        seed=7,
    )
    return hs.callbacks.LearnHyperparameters(**(defaults | arguments))


def fit(model, *callbacks, **arguments):
    x, y = make_data()
    defaults = dict(batch_size=8, epochs=2, verbose=0)
    return model.fit(x, y, callbacks=list(callbacks), **(defaults | arguments))


def strengths(model):
    return [
        variable.numpy()
        for owner in hs.find_hyperparameters(model)
        for variable in owner.hyperparameter_variables
    ]


def state(model):
    """Everything of a model but its hyperparameters."""
    owned = {
        id(variable)
        for owner in hs.find_hyperparameters(model)
        for variable in owner.hyperparameter_variables
    }
    variables = [*model.variables, *model.optimizer.variables]
    return [v.numpy() for v in variables if id(v) not in owned]


def assert_equal(a, b, **tolerance):
    for one, other in zip(a, b, strict=True):
        if tolerance:
            np.testing.assert_allclose(one, other, **tolerance)
        else:
            np.testing.assert_array_equal(one, other)


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def adam_with_all():
    return keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.01, 30),
        weight_decay=0.1,
        clipnorm=0.5,
        use_ema=True,
    )


@pytest.mark.parametrize(
    ("make_optimizer", "arguments", "policy"),
    [
        (adam_with_all, {}, "float32"),
        (keras.optimizers.Adam, {"run_eagerly": True}, "float32"),
        (keras.optimizers.Adam, {"jit_compile": True}, "float32"),
        (keras.optimizers.Adam, {"steps_per_execution": 5}, "float32"),
        (keras.optimizers.Adam, {}, "mixed_bfloat16"),
        (keras.optimizers.Adam, {}, "mixed_float16"),
        (
            lambda: keras.optimizers.Adam(gradient_accumulation_steps=3),
            {},
            "float32",
        ),
    ],
    indirect=["policy"],
)
def test_training_is_what_it_is_without(make_optimizer, arguments, policy):
    # Strengths that do not move leave no trace: in weights, statistics,
    # dropout's generator, optimizer, metrics. To the last bit.
    plain = make_model(make_optimizer(), noisy=True, **arguments)
    expected = fit(plain).history
    model = make_model(make_optimizer(), noisy=True, **arguments)
    callback = make_callback(hyper_optimizer=keras.optimizers.SGD(0.0))
    history = fit(model, callback).history
    assert callback.chain == "training"
    # Gradients that are accumulated, or overflow in float16, are not steps.
    taken = int(model.optimizer.iterations)
    assert taken <= 24 and int(callback.outer_level.iterations) == taken // 4
    assert_equal(state(model), state(plain))
    for key in expected:
        assert history[key] == expected[key], key


def learn_in_bilevel_model(optimizer, estimator, noisy=False, **arguments):
    """The same by `BilevelModel`, whose chains are held to closed forms."""
    model = make_model(optimizer, noisy=noisy, **arguments)
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=optimizer,
        loss="mse",
        hypergradient=estimator,
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    learner.fit(
        *make_data(),
        outer_data=make_data(16, seed=1),
        batch_size=8,
        outer_batch_size=16,
        shuffle=False,
        epochs=2,
        verbose=0,
    )
    return strengths(model), model.get_weights()


@pytest.mark.parametrize(
    ("make_optimizer", "estimator"),
    [
        (adam_with_all, E.HPOSGLD(1, STEPS - 1)),
        (lambda: keras.optimizers.SGD(0.05, 0.9, True), E.HPOSGLD(0, STEPS)),
        (
            lambda: keras.optimizers.Nadam(0.01, global_clipnorm=0.3),
            E.AdjointSGLD(1, STEPS - 1),
        ),
        (lambda: hs.SGLD(0.05, 1e-3, seed=3), E.AdjointSGLD(1, STEPS - 1)),
    ],
)

def test_strengths_are_those_of_a_bilevel_model(make_optimizer, estimator):
    noisy = True
    expected = learn_in_bilevel_model(make_optimizer(), estimator, noisy)
    model = make_model(make_optimizer(), noisy=noisy)
    before = strengths(model)
    callback = make_callback(estimator=copy.deepcopy(estimator))
    fit(model, callback, shuffle=False)
    assert np.abs(strengths(model)[0] - before[0]).min() > 0.01
    assert_equal(strengths(model), expected[0], rtol=2e-4, atol=2e-5)
    assert_equal(model.get_weights(), expected[1], rtol=1e-3, atol=1e-5)
