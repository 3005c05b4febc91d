"""The preconditioner, against its formula in NumPy."""

import keras
import numpy as np
import tensorflow as tf

import keras_hposgld as hs

CHAIN = 5
PARAMS = [tf.constant([[1.0, -2.0], [0.5, 3.0]]), tf.constant([0.2, -0.4, 0.0])]
PARAMS = [tf.cast(param, tf.float64) for param in PARAMS]
NOISE_FREE = dict(momentum=0.6, beta_2=0.75, epsilon=0.3)


def gradients(step):
    rng = np.random.default_rng(step)
    first, second = rng.normal(size=(2, 2)), 30.0 * rng.normal(size=3)
    second[2] = 0.0  # a weight that has no gradient at all
    return [tf.constant(first), tf.constant(second)]


def formula(squares, epsilon):
    """P from the means of the squared gradients, over all weights."""
    flat = np.concatenate([square.ravel() for square in squares])
    scales = [1.0 / (np.sqrt(s / flat.mean()) + epsilon) for s in squares]
    mean = np.concatenate([scale.ravel() for scale in scales]).mean()
    return [scale / mean for scale in scales]


def test_chains_are_those_of_the_formula(run):
    sampler = hs.PSGLD(0.05, **NOISE_FREE)

    def steps():
        params, state = PARAMS, sampler.init(PARAMS)
        path = []
        for step in range(3 * CHAIN):
            if step and step % CHAIN == 0:
                state = sampler.restart(state)
            params, state = sampler.step(
                params, gradients(step), None, state, step, None
            )
            force = sampler.force_scale(gradients(step), state, step)
            path.append((params, state["preconditioner"], force))
        return path

    expected = [param.numpy() for param in PARAMS]
    squares = [np.zeros_like(param) for param in expected]
    velocity = [np.zeros_like(param) for param in expected]
    scales = [np.ones_like(param) for param in expected]
    for step, (params, preconditioner, force) in enumerate(run(steps)):
        if step and step % CHAIN == 0:
            scales = formula(squares, 0.3)
        gradient = [part.numpy() for part in gradients(step)]
        for n, part in enumerate(gradient):
            squares[n] = 0.75 * squares[n] + 0.25 * part**2
            velocity[n] = 0.6 * velocity[n] + 0.05 * scales[n] * part
            expected[n] = expected[n] - velocity[n]
            np.testing.assert_allclose(params[n], expected[n], rtol=1e-6)
            np.testing.assert_allclose(preconditioner[n], scales[n], rtol=1e-6)
            # The map that derivatives use is the one that the step takes.
            np.testing.assert_allclose(
                force[n], 0.05 * scales[n] * part, rtol=1e-6
            )
    assert np.ptp(np.concatenate([s.ravel() for s in scales])) > 1.0


def test_no_weight_takes_more_than_the_bound():
    sampler = hs.PSGLD(0.05, **NOISE_FREE)
    state = sampler.init(PARAMS)
    for step in range(CHAIN):
        _, state = sampler.step(PARAMS, gradients(step), None, state, step, 0)
    scales = sampler.restart(state)["preconditioner"]
    flat = np.concatenate([scale.numpy().ravel() for scale in scales])
    np.testing.assert_allclose(flat.mean(), 1.0)
    assert flat.max() == flat[-1] > 1.5  # the weight without a gradient
    assert flat.max() < sampler.largest_curvature_scale()
    # Without any past there is nothing to go by.
    ones = sampler.restart(sampler.init(PARAMS))["preconditioner"]
    for scale in ones:
        np.testing.assert_allclose(scale, np.ones(scale.shape))


def test_each_step_of_a_plain_fit_is_a_chain():
    variables = [keras.Variable(p, dtype="float64") for p in PARAMS]
    sampler = hs.PSGLD(0.05, **NOISE_FREE)
    sampler.build(variables)
    squares = [np.zeros(param.shape) for param in PARAMS]
    for step in range(4):
        sampler.apply(gradients(step), variables)
        for n, part in enumerate(gradients(step)):
            squares[n] = 0.75 * squares[n] + 0.25 * part.numpy() ** 2
        for found, scale in zip(
            sampler.state_variables["preconditioner"],
            formula(squares, 0.3),
            strict=True,
        ):
            np.testing.assert_allclose(found, scale, rtol=1e-6)
