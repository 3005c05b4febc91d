"""The penalty with derivatives by hand, against automatic ones."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hposgld.core import one_pass
from keras_hposgld.regularizers import bounded_penalty as module
from keras_hposgld.regularizers.bounded_penalty import bounded_penalty

BOUND = 3.0
# Of strengths that broadcast against weights of shape (4, 3).
ALIGNED = {"parameter": (4, 3), "input": (4, 1), "output": (1, 3), "": (1, 1)}


def automatic(deviation, unconstrained, power, max_value):
    strength = max_value * tf.sigmoid(unconstrained)
    size = tf.abs(deviation) if power == "l1" else deviation**2
    return tf.reduce_sum(strength * size)


def derivatives(function, deviation, unconstrained, vector, *arguments):
    """The value, both first derivatives, and both products with a vector."""
    sources = [deviation, unconstrained]
    with tf.GradientTape() as second_tape:
        second_tape.watch(sources)
        with tf.GradientTape() as tape:
            tape.watch(sources)
            value = 0.7 * function(deviation, unconstrained, *arguments)
        first = tape.gradient(value, sources)
    second = second_tape.gradient(
        first[0], sources, vector, unconnected_gradients="zero"
    )
    return [value, *first, *second]


@pytest.fixture(params=["plain", "compiled"])
def size(request, monkeypatch):
    """Weights that count as small, and ones that count as large."""
    if request.param == "compiled":
        monkeypatch.setattr(one_pass, "COMPILED_SIZE", 12)


@pytest.mark.parametrize("how", ["eager", "graph", "xla"])
@pytest.mark.parametrize("aligned", list(ALIGNED))
@pytest.mark.parametrize("power", ["l1", "l2"])
def test_derivatives_are_the_automatic_ones(size, power, aligned, how):
    generator = np.random.default_rng(0)
    deviation = tf.constant(generator.normal(size=(4, 3)))
    unconstrained = tf.constant(generator.normal(size=ALIGNED[aligned]))
    vector = tf.constant(generator.normal(size=(4, 3)))

    def compare(deviation, unconstrained, vector):
        arguments = (power, BOUND)
        return [
            derivatives(f, deviation, unconstrained, vector, *arguments)
            for f in (bounded_penalty, automatic)
        ]

    if how != "eager":
        compare = tf.function(compare, jit_compile=how == "xla")
    by_hand, expected = compare(deviation, unconstrained, vector)
    for ours, theirs in zip(by_hand, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("power", ["l1", "l2"])
def test_strength_at_its_bound_keeps_its_derivative(size, run, power):
    # The exact derivative by u, 3 sigmoid(u) sigmoid(-u), in float64. At 80
    # it is 5e-35, near the smallest number of float32; zero is wrong.
    unconstrained = np.repeat([-80.0, -20.0, 0.0, 17.0, 20.0, 80.0], 2)
    deviation = np.full(12, 1.5)
    arguments = [
        tf.constant(x, tf.float32)
        for x in (deviation, unconstrained, np.ones(12))
    ]
    *_, by_unconstrained, _, mixed = run(
        lambda: derivatives(bounded_penalty, *arguments, power, BOUND)
    )
    tail = np.exp(-np.abs(unconstrained))
    slope = BOUND * tail / (1.0 + tail) ** 2
    penalty = np.abs(deviation) if power == "l1" else deviation**2
    by_weight = np.sign(deviation) if power == "l1" else 2.0 * deviation
    # 80 has an error of 80 units in the last place, as an exponent.
    np.testing.assert_allclose(
        by_unconstrained, 0.7 * penalty * slope, rtol=1e-5
    )
    np.testing.assert_allclose(mixed, 0.7 * by_weight * slope, rtol=1e-5)


def test_what_deviation_depends_on_is_reached():
    # Tapes must see through the penalty to where its arguments come from.
    weight = tf.constant([1.5, -0.5], tf.float64)
    center = tf.constant([1.0, 2.0], tf.float64)
    unconstrained = tf.constant([0.3, -0.4], tf.float64)
    with tf.GradientTape() as second_tape:
        second_tape.watch([center, unconstrained])
        with tf.GradientTape() as tape:
            tape.watch(weight)
            value = bounded_penalty(
                weight - center, 2.0 * unconstrained, "l2", BOUND
            )
        gradient = tape.gradient(value, weight)
    by_center, by_unconstrained = second_tape.gradient(
        gradient, [center, unconstrained]
    )
    share = tf.sigmoid(2.0 * unconstrained)
    np.testing.assert_allclose(by_center, -2.0 * BOUND * share)
    np.testing.assert_allclose(
        by_unconstrained,
        2.0 * (weight - center) * BOUND * share * (1.0 - share) * 2.0,
    )


def test_forward_mode_agrees_with_reverse_mode():
    deviation = tf.constant([1.5, -0.5], tf.float64)
    direction = tf.constant([0.2, 0.7], tf.float64)
    unconstrained = tf.constant([0.3, -0.4], tf.float64)

    def gradient(deviation):
        with tf.GradientTape() as tape:
            tape.watch(deviation)
            value = bounded_penalty(deviation, unconstrained, "l2", BOUND)
        return tape.gradient(value, deviation)

    with tf.autodiff.ForwardAccumulator(deviation, direction) as accumulator:
        slope = gradient(deviation)
    expected = 2.0 * BOUND * tf.sigmoid(unconstrained) * direction
    np.testing.assert_allclose(accumulator.jvp(slope), expected)


def test_regularizers_of_one_bound_share_what_is_compiled():
    assert module._parts("l2", 3.0, True) is module._parts("l2", 3.0, True)
    assert module._parts("l2", 3.0, True) is not module._parts("l2", 4.0, True)
