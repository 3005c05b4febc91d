"""The rules by which strengths follow the weights."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.regularizers import update_rules
from keras_hposgld.regularizers.update_rules import Groups

SEED = tf.constant([5, 2])
GRID = np.linspace(-25.0, 25.0, 20001)  # of log r


def seeds(number):
    fold_in = tf.random.experimental.stateless_fold_in
    return [fold_in(SEED, 2 * number), fold_in(SEED, 2 * number + 1)]


def law_of(log_density):
    """Mean and standard deviation of log r, by quadrature."""
    weight = np.exp(log_density - log_density.max())
    weight /= weight.sum()
    mean = weight @ GRID
    return mean, np.sqrt(weight @ (GRID - mean) ** 2)


@pytest.mark.parametrize("shape, size", [(0.5, 0.01), (10.0, 4.0), (1.0, 90.0)])
def test_gibbs_draws_the_law_given_the_weights(run, shape, size):
    # r^shape exp(-r size), and a half-Cauchy scale: r^(-1/2) / (r + r0).
    usual, number = 3.0, 20_000
    r = np.exp(GRID)
    density = (shape + 0.5) * GRID - r * size - np.log(r + usual)
    mean, deviation = law_of(density)

    def step(index, log_rate):
        groups = Groups(log_rate, shape, tf.constant(size, tf.float64))
        log_rate, _ = update_rules.gibbs(groups, usual, seeds(index))
        return index + 1, log_rate

    def draws():
        log_rate = tf.fill([number], tf.constant(1.0, tf.float64))
        start = (tf.constant(0), log_rate)
        return tf.while_loop(lambda index, _: index < 8, step, start)[1]

    found = np.asarray(run(draws))
    error = deviation / np.sqrt(number)
    assert abs(found.mean() - mean) < 5 * error
    assert abs(found.std() / deviation - 1) < 0.04


def test_common_scale_is_drawn_given_all_groups():
    # nu_j ~ Gamma(1/2, r0) and r0 with a half-Cauchy scale of 1.
    nu = tf.constant([0.2, 1.0, 3.0, 0.5], tf.float64)
    r0 = np.exp(GRID)
    total = float(tf.reduce_sum(nu))
    density = 0.5 * GRID - np.log(1 + r0) + 2 * GRID - r0 * total
    mean, deviation = law_of(density)

    def draw(usual, number):
        for step in range(6):
            usual = update_rules.common_scale(
                usual, nu, seeds(9 * number + step)
            )
        return usual

    @tf.function(autograph=False)
    def draws():
        return tf.map_fn(
            lambda number: draw(tf.constant(1.0, tf.float64), number),
            tf.range(4000),
            fn_output_signature=tf.float64,
        )

    found = np.log(draws())
    assert abs(found.mean() - mean) < 5 * deviation / np.sqrt(4000)
    assert abs(found.std() / deviation - 1) < 0.08


def test_gradient_goes_uphill_and_stops_at_the_mode(run):
    shape, usual = 4.0, 3.0
    size = tf.constant([0.1, 2.0, 50.0], tf.float64)

    def climb():
        def step(number, log_rate):
            groups = Groups(log_rate, shape, size)
            return number + 1, update_rules.gradient(groups, usual, number)

        start = (tf.constant(0), tf.constant([0.0, 5.0, -2.0], tf.float64))
        first = step(*start)[1]
        end = tf.while_loop(lambda number, _: number < 400, step, start)[1]
        return first, end

    first, end = map(np.asarray, run(climb))
    # Of r^(shape + 1/2) exp(-r (size + 1/(2 r0))).
    mode = np.log((shape + 0.5) / (size.numpy() + 0.5 / usual))
    np.testing.assert_allclose(end, mode, atol=1e-6)
    # Uphill by half of what can be told, and downhill by no more than 1.5.
    assert first[0] == pytest.approx(0.5 * (1 - np.exp(-mode[0])))
    assert first[1] == pytest.approx(5.0 - 1.5)


def test_sizes_that_two_rates_expect_are_those_of_quadrature(run):
    w = np.linspace(-60.0, 60.0, 400_001)
    for r1, r2 in ((0.3, 2.0), (4.0, 0.1), (30.0, 1e-3), (1e-3, 0.5)):
        log_rates = {
            power: tf.math.log(tf.constant([r], tf.float64))
            for power, r in (("l1", r1), ("l2", r2))
        }
        found = run(partial(update_rules.expected_sizes, log_rates))
        density = np.exp(-r1 * np.abs(w) - r2 * w**2 / 2)
        density /= density.sum()
        expected = r1 * np.abs(w) @ density, r2 * w**2 / 2 @ density
        for part, value in zip(found.values(), expected, strict=True):
            np.testing.assert_allclose(part, [value], rtol=1e-4, atol=1e-7)
    # Alone, each expects the shape of one weight.
    alone = update_rules.expected_sizes({"l2": tf.constant([3.0])})
    np.testing.assert_allclose(alone["l2"], [0.5], rtol=1e-6)


def test_strengths_of_both_penalties_climb_to_their_mode(float64):
    tau, value = 0.01, np.full([25, 2], 0.1)
    value[::5] = 0.9
    owner = hs.regularizers.LearnableL1L2(0.02, granularity="tensor")
    weight = keras.Variable(value)
    owner.attach(weight)

    @tf.function(autograph=False)
    def climb():
        def step(number):
            end = ChainEnd(
                "gibbs", tau, lambda _: weight, None, number, lambda *_: SEED
            )
            for variable, new in owner.renewed(end):
                variable.assign(new)
            return number + 1

        tf.while_loop(lambda n: n < 5000, step, [tf.constant(0)])

    climb()
    l1, l2 = (float(v) for v in owner.hyperparameter_values().values())
    found = np.log([l1 / tau, 2 * l2 / tau])

    number, sizes = 50, (np.abs(value).sum(), (value**2).sum() / 2)
    usual = [update_rules.usual_rate((25, 2), p) for p in ("l1", "l2")]
    w = np.linspace(-30.0, 30.0, 6001)
    grid = np.linspace(-4.0, 4.0, 161)
    log_density = np.array(
        [
            [
                -number * np.log(np.exp(-a * abs(w) - b * w**2 / 2).sum())
                - a * (sizes[0] + 0.5 / usual[0])
                - b * (sizes[1] + 0.5 / usual[1])
                + 0.5 * (np.log(a) + np.log(b))
                for b in np.exp(grid)
            ]
            for a in np.exp(grid)
        ]
    )
    best = np.unravel_index(log_density.argmax(), log_density.shape)
    assert 0 < min(best) and max(best) < len(grid) - 1
    np.testing.assert_allclose(found, grid[list(best)], atol=0.05)


def test_rates_and_strengths_are_two_ways_to_say_one_thing():
    log_strength, tau = tf.constant(-2.0, tf.float64), 0.01
    for power, unit in (("l2", tau / 2), ("l1", tau)):
        log_rate = update_rules.log_rate_of(log_strength, power, tau)
        np.testing.assert_allclose(log_rate, -2.0 - np.log(unit))
        back = update_rules.log_strength_of(log_rate, power, tau)
        np.testing.assert_allclose(back, -2.0)
    assert update_rules.usual_rate((30, 4), "l2") == 60.0
    assert update_rules.usual_rate((3, 3, 5, 4), "l2") == 90.0
    assert update_rules.usual_rate((7,), "l2") == 1.0
    # Both priors have the variance 1 / 60.
    assert 2 / update_rules.usual_rate((30, 4), "l1") ** 2 == pytest.approx(
        1 / 60
    )
