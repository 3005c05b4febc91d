"""Keras's optimizers as samplers: the same steps, and their form."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.samplers.sampler import effective_scale

SCHEDULE = keras.optimizers.schedules.CosineDecay(0.05, 60, alpha=0.1)
SERVED = {
    "sgd": lambda rate, **common: keras.optimizers.SGD(rate, **common),
    "sgd_momentum": lambda rate, **common: keras.optimizers.SGD(
        rate, momentum=0.9, **common
    ),
    "sgd_nesterov": lambda rate, **common: keras.optimizers.SGD(
        rate, momentum=0.8, nesterov=True, **common
    ),
    "rmsprop": lambda rate, **common: keras.optimizers.RMSprop(
        rate, rho=0.8, **common
    ),
    "rmsprop_centered": lambda rate, **common: keras.optimizers.RMSprop(
        rate, momentum=0.7, centered=True, epsilon=1e-3, **common
    ),
    "adam": lambda rate, **common: keras.optimizers.Adam(
        rate, beta_1=0.8, beta_2=0.95, **common
    ),
    "amsgrad": lambda rate, **common: keras.optimizers.Adam(
        rate, amsgrad=True, epsilon=1e-4, **common
    ),
    "adamw": lambda rate, **common: keras.optimizers.AdamW(
        rate, **{"weight_decay": 0.3} | common
    ),
    "nadam": lambda rate, **common: keras.optimizers.Nadam(
        rate, beta_1=0.85, **common
    ),
    "adamax": lambda rate, **common: keras.optimizers.Adamax(rate, **common),
}
COMMON = {
    "plain": {},
    "clipnorm_ema": {"clipnorm": 0.5, "use_ema": True, "ema_momentum": 0.9},
    "global_clipnorm_decay": {"global_clipnorm": 0.7, "weight_decay": 0.2},
}


def gradients(step, params, dtype):
    """Noisy gradients of a quadratic, some of them exactly zero."""
    rng = np.random.default_rng(step)
    return [
        tf.constant(rng.normal(size=p.shape) * [1.0, 3.0, 0.0], dtype)
        + 2.0 * p * [1.0, 0.1, 0.0]
        for p in params
    ]


def start(dtype):
    rng = np.random.default_rng(7)
    return [
        tf.constant(rng.normal(size=shape), dtype) for shape in ((4, 3), (3,))
    ]


def keras_path(optimizer, dtype, num_steps):
    variables = [keras.Variable(p, dtype=dtype) for p in start(dtype)]
    optimizer.build(variables)
    apply = tf.function(optimizer.apply, autograph=False)
    for step in range(num_steps):
        values = [v.value for v in variables]
        apply(gradients(step, values, dtype))
    return variables


def chain_path(sampler, dtype, num_steps):
    params = start(dtype)
    state = sampler.init(params)

    @tf.function(autograph=False)
    def move(params, gradient, state, step):
        return sampler.step(params, gradient, None, state, step, None)

    for step in range(num_steps):
        gradient = gradients(step, params, dtype)
        params, state = move(params, gradient, state, tf.constant(step))
    return params, state


@pytest.mark.parametrize(
    "common, dtype",
    [
        ("plain", "float64"),
        ("clipnorm_ema", "float32"),
        ("global_clipnorm_decay", "float32"),
    ],
)
@pytest.mark.parametrize("name", SERVED)
def test_hundred_steps_are_those_of_apply(name, common, dtype):
    arguments = COMMON[common]
    optimizer = SERVED[name](SCHEDULE, **arguments)
    expected = keras_path(optimizer, dtype, 100)
    sampler = hs.samplers.from_optimizer(SERVED[name](SCHEDULE, **arguments))
    params, state = chain_path(sampler, dtype, 100)
    # The graphs differ, and with them the last bits of the schedule.
    for ours, keras_own in zip(params, expected, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-6, atol=1e-6)
    # The state too, which a model's optimizer holds between chains.
    variables = hs.samplers.from_optimizer(optimizer).state_variables
    assert variables.keys() == state.keys()
    for slot, values in variables.items():
        for ours, keras_own in zip(state[slot], values, strict=True):
            np.testing.assert_allclose(ours, keras_own, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("name", SERVED)
def test_steps_are_those_of_apply_bit_for_bit(name):
    variables = [keras.Variable(p) for p in start("float32")]
    optimizer = SERVED[name](SCHEDULE)
    optimizer.build(variables)
    sampler = hs.samplers.from_optimizer(optimizer)
    params = start("float32")
    state = sampler.init(params)
    for step in range(8):
        gradient = gradients(step, params, "float32")
        params, state = sampler.step(
            params, gradient, None, state, tf.constant(step), None
        )
        optimizer.apply(gradient)
        for ours, keras_own in zip(params, variables, strict=True):
            np.testing.assert_array_equal(ours, keras_own)


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("name", SERVED)
def test_steps_are_the_same_in_a_compiled_loop(name, mode):
    sampler = hs.samplers.from_optimizer(SERVED[name](SCHEDULE))
    noise = tf.constant(
        np.random.default_rng(2).normal(size=(12, 3)), tf.float64
    )

    @tf.function(autograph=False, jit_compile=mode == "xla")
    def compiled(param):
        def body(step, param, state):
            (param,), state = sampler.step(
                [param], [param + noise[step]], None, state, step, None
            )
            return step + 1, param, state

        return tf.while_loop(
            lambda step, *_: step < 12,
            body,
            (tf.constant(0), param, sampler.init([param])),
        )[1]

    param = tf.constant([1.0, -2.0, 3.0], tf.float64)
    expected, state = [param], sampler.init([param])
    for step in range(12):
        expected, state = sampler.step(
            expected, [expected[0] + noise[step]], None, state, step, None
        )
    np.testing.assert_allclose(compiled(param), expected[0], rtol=1e-5)


@pytest.mark.parametrize("name", SERVED)
def test_the_step_has_the_stated_form(name):
    # M <- mu M + A g and theta <- theta - B M - E g, with the maps of the
    # state after each step, gives the same path.
    sampler = hs.samplers.from_optimizer(
        SERVED[name](SCHEDULE, weight_decay=0.0)
    )
    params = start("float64")
    state = sampler.init(params)
    velocity = [tf.zeros_like(p) for p in params]
    for step in range(30):
        gradient = gradients(step, params, "float64")
        before = params
        params, state = sampler.step(params, gradient, None, state, step, None)
        force = sampler.force_scale(gradient, state, step)
        velocity = [
            sampler.momentum * m + a
            for m, a in zip(velocity, force, strict=True)
        ]
        moved = sampler.velocity_scale(velocity, state, step)
        direct = sampler.direct_scale(gradient, state, step)
        for position, param in enumerate(before):
            expected = param - moved[position]
            if direct is not None:
                expected -= direct[position]
            np.testing.assert_allclose(
                params[position], expected, rtol=1e-7, atol=1e-10
            )


@pytest.mark.parametrize("name", SERVED)
def test_both_scales_at_once_are_one_after_the_other(name):
    # For a large weight in a graph, XLA makes one pass of it.
    rng = np.random.default_rng(0)
    sampler = hs.samplers.from_optimizer(SERVED[name](0.01, use_ema=True))
    params = [tf.zeros([2**16]), tf.zeros([3])]

    def draw():
        return [
            tf.constant(rng.normal(size=p.shape), "float32") for p in params
        ]

    _, state = sampler.step(params, draw(), None, sampler.init(params), 4, None)
    vector = draw()
    forced = sampler.force_scale(vector, state, 4)
    expected = sampler.velocity_scale(forced, state, 4)
    at_once = tf.function(lambda v: sampler.drift_scale(v, state, 4))(vector)
    for a, b in zip(at_once, expected, strict=True):
        assert np.abs(a).min() > 0
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("name", SERVED)
def test_effective_scale_is_what_a_constant_force_moves_by(name):
    sampler = hs.samplers.from_optimizer(SERVED[name](0.01, weight_decay=0.0))
    params, force = [tf.zeros([1], tf.float64)], [tf.ones([1], tf.float64)]
    state = sampler.init(params)
    for step in range(300):
        before = params
        params, state = sampler.step(params, force, None, state, step, None)
    scale = effective_scale(sampler, force, state, 299)
    np.testing.assert_allclose(
        before[0] - params[0], scale[0], rtol=1e-4 if "adam" in name else 1e-6
    )


def test_weights_left_out_of_the_decay_do_not_decay():
    optimizer = SERVED["adamw"](SCHEDULE)
    variables = [
        keras.Variable(p, name=n)
        for p, n in zip(start("float32"), "ab", strict=True)
    ]
    optimizer.exclude_from_weight_decay(var_list=[variables[1]])
    optimizer.build(variables)
    sampler = hs.samplers.from_optimizer(optimizer)
    params = start("float32")
    first, second = sampler.own_decay(params)
    np.testing.assert_allclose(first, 0.3 * params[0], rtol=1e-6)
    np.testing.assert_array_equal(second, tf.zeros([3]))


@pytest.mark.parametrize(
    "optimizer, message",
    [
        (lambda: keras.optimizers.Lion(), "Received: optimizer=Lion.*Adam"),
        (lambda: keras.optimizers.Ftrl(), "Received: optimizer=Ftrl.*SGLD"),
        (
            lambda: keras.optimizers.Adam(gradient_accumulation_steps=2),
            "`gradient_accumulation_steps` must be None",
        ),
        (
            lambda: keras.optimizers.Adam(
                use_ema=True, ema_overwrite_frequency=3
            ),
            "`ema_overwrite_frequency` must be None",
        ),
        (
            lambda: keras.optimizers.SGD(loss_scale_factor=2.0),
            "`loss_scale_factor` must be None",
        ),
    ],
)
def test_what_no_chain_can_step_is_refused_by_name(optimizer, message):
    with pytest.raises(ValueError, match=message):
        hs.samplers.from_optimizer(optimizer())


def test_subclass_of_a_served_optimizer_is_refused():
    class MyAdam(keras.optimizers.Adam):
        def update_step(self, gradient, variable, learning_rate):
            self.assign_sub(variable, gradient)

    with pytest.raises(ValueError, match="Received: optimizer=MyAdam"):
        hs.samplers.from_optimizer(MyAdam())
