"""`SGLD("auto")`: its law at any strength, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.samplers import AutoSGLD
from keras_hposgld.samplers.sampler import effective_scale

TAU = 0.3
SEED = tf.constant([7, 0])


def state_of(params, step_sizes, curvature, sampler):
    """The state of a sampler whose step sizes are set."""
    zeros = [tf.zeros_like(param) for param in params]
    pairs = zip(step_sizes, params, strict=True)
    sizes = [tf.constant(size, p.dtype) for size, p in pairs]
    return sampler.with_curvature(
        {"velocity": zeros, "step_size": sizes}, params, curvature
    )


def steps(sampler, params, state, gradient, number):
    """Many steps in one loop."""

    @tf.function(autograph=False)
    def run(params, state):
        def body(index, params, state):
            params, state = sampler.step(
                params, gradient(params), None, state, index, SEED
            )
            return index + 1, params, state

        return tf.while_loop(
            lambda index, *_: index < number, body, (0, params, state)
        )[1:]

    return run(params, state)


@pytest.mark.parametrize(
    "arguments, tolerance",
    [
        (dict(momentum=0.9), 0.03),
        (dict(momentum=0.0), 0.03),
        # Exact for the penalty; of the loss it makes Euler's error.
        (dict(integrator="exponential"), 0.11),
    ],
)
def test_law_is_right_at_any_strength(arguments, tolerance):
    # A loss of curvature 2 and penalties up to 1e6, 4000 chains side by side.
    h = tf.constant([[0.0], [0.5], [30.0], [1e6]], tf.float64)
    sampler = hs.SGLD("auto", TAU, seed=3, **arguments)
    sampler.learning_rate = 0.2
    params = [tf.zeros([4, 4000], tf.float64)]
    state = state_of(params, [0.5], [h], sampler)
    (w,), _ = steps(sampler, params, state, lambda p: [(2.0 + h) * p[0]], 400)
    variance = np.var(w, axis=1) * (2.0 + h.numpy()[:, 0]) / TAU
    assert np.abs(variance - 1).max() < tolerance + 3 * np.sqrt(2 / 4000)


def test_law_stays_where_strengths_and_step_sizes_change():
    # The velocity goes on: its law knows neither.
    sampler = hs.SGLD("auto", TAU, seed=3)
    params = [tf.random.stateless_normal([8000], SEED, dtype=tf.float64)]
    state = state_of(params, [0.5], [tf.constant(0.0, tf.float64)], sampler)
    for h, size, number in ((0.0, 0.5, 200), (50.0, 0.1, 200), (4.0, 0.3, 3)):
        curvature = tf.constant(h, tf.float64)
        state = sampler.with_curvature(
            state | {"step_size": [tf.constant(size, tf.float64)]},
            params,
            [curvature],
        )
        if number == 3:  # at once in the new law, if it starts there
            params = [params[0] * np.sqrt(52.0 / 6.0)]
        params, state = steps(
            sampler,
            params,
            state,
            lambda p, h=curvature: [(2.0 + h) * p[0]],
            number,
        )
        ratio = np.var(params[0]) * (2.0 + h) / TAU
        assert abs(ratio - 1) < 0.06


def test_step_and_scales_are_the_formula(run):
    sampler = hs.SGLD("auto", 0.0, momentum=0.7, seed=1)
    sampler.learning_rate = 0.25
    w, v, g = (tf.constant([1.5, -2.0]), tf.constant([0.3, 0.1]), [3.0, -1.0])
    h = tf.constant([0.0, 40.0])
    state = {"velocity": [v], "step_size": [tf.constant(0.2)]}
    state = sampler.with_curvature(state, [w], [h])

    def step():
        moved, after = sampler.step([w], [tf.constant(g)], None, state, 4, SEED)
        ones = [tf.ones_like(w)]
        return (
            moved[0],
            after["velocity"][0],
            sampler.force_scale(ones, after, 4)[0],
            sampler.velocity_scale(ones, after, 4)[0],
            effective_scale(sampler, ones, after, 4)[0],
        )

    moved, velocity, force, scale, effective = run(step)
    root = np.sqrt(1 / (1 / (0.25 * 0.2) + h.numpy()))
    expected = 0.7 * v.numpy() + root * np.array(g)
    np.testing.assert_allclose(velocity, expected, rtol=1e-6)
    np.testing.assert_allclose(moved, w - root * expected, rtol=1e-6)
    np.testing.assert_allclose(force, root, rtol=1e-6)
    np.testing.assert_allclose(scale, root, rtol=1e-6)
    np.testing.assert_allclose(effective, root**2 / 0.3, rtol=1e-5)


def test_it_is_an_sgld_and_survives_its_config():
    sampler = hs.SGLD("auto", 0.1, seed=5, noise="rademacher")
    assert isinstance(sampler, hs.SGLD) and type(sampler) is AutoSGLD
    assert sampler.momentum == 0.95 and sampler.integrator == "averaged"
    config = keras.saving.serialize_keras_object(sampler)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is AutoSGLD
    assert again.get_config() == sampler.get_config()
    assert again.given_momentum is None
    assert hs.SGLD("auto", momentum=0.5).given_momentum == 0.5
    assert hs.SGLD("auto", integrator="exponential").momentum == 0.0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: hs.SGLD("auto", integrator="euler"), "`integrator` must be"),
        (lambda: hs.SGLD("auto", momentum=1.0), "`momentum`"),
        (
            lambda: hs.SGLD("auto", momentum=0.5, integrator="exponential"),
            "`momentum` must be 0",
        ),
        (lambda: hs.SGLD("fast"), "learning_rate"),
        (lambda: hs.PSGLD("auto"), "learning_rate"),
        (lambda: AutoSGLD(0.1), '`learning_rate` must be "auto"'),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_places_without_step_sizes_are_refused():
    problem = hs.BilevelProblem(
        lambda h, w, batch: h * w**2, lambda h, w, batch: w**2
    )
    with pytest.raises(ValueError, match="needs the step sizes that `fit`"):
        hs.hypergradient(
            problem, 1.0, 1.0, estimator="rmd", sampler=hs.SGLD("auto")
        )
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(hs.SGLD("auto"), "mse")
    with pytest.raises(ValueError, match="needs the step sizes that `fit`"):
        model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
