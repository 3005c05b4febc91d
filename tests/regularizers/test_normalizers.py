"""How each penalty is normalized: against quadrature and differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.hyperparameters.registry import REGISTRY
from keras_hposgld.regularizers.normalizers import LARGE_X
from keras_hposgld.regularizers.normalizers import log_normalizer

integrate = pytest.importorskip("scipy.integrate")
KINDS = ("l1", "l2", "l1l2")


def quadrature(temperature, l1=0.0, l2=0.0):
    """log int exp(-(l1 |w| + l2 w^2) / temperature) dw."""
    # In units of the width, so that the quadrature sees the peak.
    widths = [temperature / l1] if l1 else []
    widths += [np.sqrt(temperature / l2)] if l2 else []
    width = min(widths)
    half, _ = integrate.quad(
        lambda v: np.exp(
            -(l1 * v * width + l2 * (v * width) ** 2) / temperature
        ),
        0.0,
        50.0,
        epsabs=0.0,
        epsrel=1e-13,
    )
    return np.log(2 * half * width)


@pytest.mark.parametrize("temperature", [0.3, 1e-3])
@pytest.mark.parametrize(
    "l1, l2",
    [
        (0.7, 0.4),
        (1e-9, 2.0),
        (2.0, 1e-12),
        (1e-3, 1e3),
        (30.0, 0.5),
        (4.0, 0.8),
        (100.0, 1e-30),
        # On both sides of where the series takes over.
        (2 * LARGE_X * 0.99 * np.sqrt(0.3), 1.0),
        (2 * LARGE_X * 1.01 * np.sqrt(0.3), 1.0),
    ],
)
def test_both_penalties_are_normalized_in_every_range(run, l1, l2, temperature):
    logs = {"l1": tf.constant(np.log(l1)), "l2": tf.constant(np.log(l2))}

    def both():
        with tf.GradientTape() as tape:
            tape.watch(logs)
            value = log_normalizer(logs, temperature)
        return value, tape.gradient(value, logs)

    value, slope = run(both)
    exact = quadrature(temperature, l1, l2)
    np.testing.assert_allclose(value, exact, rtol=1e-11, atol=1e-11)
    step = 1e-3
    for power, other in (("l1", l2), ("l2", l1)):
        numeric = [
            quadrature(
                temperature,
                **{
                    "l1": l1,
                    "l2": l2,
                    power: {"l1": l1, "l2": l2}[power] * np.exp(change),
                },
            )
            for change in (-step, step)
        ]
        numeric = (numeric[1] - numeric[0]) / (2 * step)
        np.testing.assert_allclose(
            slope[power], numeric, rtol=1e-5, atol=1e-9, err_msg=f"{other}"
        )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_strength_is_too_small_or_too_large(dtype):
    # Neither value nor derivative: of the unconstrained numbers, strengths are
    # zero in their dtype, or at their bound, long before these are infinite.
    for unconstrained in (-1e4, -200.0, 200.0):
        for other in (-1e4, 0.0, 200.0):
            owner = hs.regularizers.LearnableL1L2(granularity="tensor")
            weight = keras.Variable(np.zeros([3, 2]), dtype=dtype)
            owner.attach(weight)
            first, second = owner.hyperparameter_variables
            first.assign(unconstrained)
            second.assign(other)
            with tf.GradientTape() as tape:
                tape.watch([first.value, second.value])
                value = owner.log_normalizer(1e-3)
            slopes = tape.gradient(value, [first.value, second.value])
            for number in (value, *slopes):
                assert np.isfinite(float(number))


@pytest.mark.parametrize("center", [None, "initial"])
@pytest.mark.parametrize(
    "granularity", ["parameter", "input", "output", "tensor"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_regularizer_sums_over_the_weights_it_serves(
    rng, kind, granularity, center
):
    temperature, shapes = 0.02, ((3, 4), (2, 3))
    owner = REGISTRY.find(kind)(
        granularity=granularity, center=center, max_value=5.0
    )
    weights = [
        keras.Variable(rng.normal(size=shape), dtype="float64")
        for shape in shapes
    ]
    penalties = [owner.attach(weight) for weight in weights]
    variables = owner.hyperparameter_variables
    for variable in variables:
        variable.assign(rng.normal(-1.0, 1.0, variable.shape))
    expected = 0.0
    for penalty, shape in zip(penalties, shapes, strict=True):
        strengths = {
            power: np.broadcast_to(value, shape).ravel()
            for power, value in penalty.strength_values().items()
        }
        for position in range(np.prod(shape)):
            expected += quadrature(
                temperature, **{p: v[position] for p, v in strengths.items()}
            )
    with tf.GradientTape() as tape:
        tape.watch([v.value for v in variables])
        value = owner.log_normalizer(temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    slopes = tape.gradient(value, [v.value for v in variables])
    direction = [rng.normal(size=v.shape) for v in variables]
    starts, step = [v.numpy() for v in variables], 1e-4
    values = []
    for sign in (-1, 1):
        for variable, start, change in zip(
            variables, starts, direction, strict=True
        ):
            variable.assign(start + sign * step * change)
        values.append(float(owner.log_normalizer(temperature)))
    numeric = (values[1] - values[0]) / (2 * step)
    along = sum(np.sum(s * d) for s, d in zip(slopes, direction, strict=True))
    np.testing.assert_allclose(along, numeric, rtol=1e-6)


def test_normalizer_is_a_function_of_the_values_in_a_scope(run):
    owner = hs.regularizers.LearnableL2(granularity="tensor")
    weight = keras.Variable(np.zeros([3, 2]), dtype="float64")
    owner.attach(weight)
    (variable,) = owner.hyperparameter_variables

    def value(number):
        with keras.StatelessScope([(variable, number)]):
            return owner.log_normalizer(0.1)

    # 10 sigmoid(0.3) is the strength; six weights have it.
    strength = 10.0 / (1.0 + np.exp(-0.3))
    expected = 3.0 * np.log(np.pi * 0.1 / strength)
    found = run(lambda: value(tf.constant(0.3, tf.float64)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_bijector_of_ones_own_is_followed():
    import tensorflow_probability as tfp

    owner = hs.regularizers.LearnableL2(
        0.2, granularity="tensor", bijector=tfp.bijectors.Softplus()
    )
    weight = keras.Variable(np.zeros([3]), dtype="float64")
    owner.attach(weight)
    np.testing.assert_allclose(
        owner.log_normalizer(0.1), 1.5 * np.log(np.pi * 0.1 / 0.2), rtol=1e-6
    )


def test_half_precision_is_summed_in_float32():
    owner = hs.regularizers.LearnableL2(0.25, granularity="tensor")
    weight = keras.Variable(np.zeros([300, 5]), dtype="float16")
    owner.attach(weight)
    value = owner.log_normalizer(0.1)
    assert value.dtype == tf.float32
    # The strength itself has three digits.
    np.testing.assert_allclose(
        float(value), 750 * np.log(np.pi * 0.1 / 0.25), rtol=2e-2
    )


def test_only_penalties_and_likelihoods_are_densities():
    arguments = {
        "affine": {"rotation": 10.0},
        "class_weights": {"num_classes": 3},
        "example_weights": {"num_examples": 5},
        "noisy_labels": {"num_classes": 3},
        "output_weight": {"loss": "mse"},
        "source_weights": {"num_sources": 3},
    }
    known = set()
    for alias in REGISTRY.aliases:
        owner = REGISTRY.find(alias)(**arguments.get(alias, {}))
        weight = keras.Variable(np.zeros([2, 2]))
        if hasattr(owner, "attach"):
            owner.attach(weight)
        if owner.log_normalizer(0.1) is not None:
            known.add(alias)
    assert known == {*KINDS, "gaussian_loss", "noisy_labels"}


@pytest.mark.parametrize("kind, number", [("l1", None), ("l2", 2), ("l1l2", 2)])
def test_curvature_is_that_of_the_quadratic_part(rng, kind, number):
    owner = REGISTRY.find(kind)(granularity="output", center="initial")
    weight = keras.Variable(rng.normal(size=[3, 4]), dtype="float64")
    penalty = owner.attach(weight)
    for variable in owner.hyperparameter_variables:
        variable.assign(rng.normal(-1.0, 1.0, variable.shape))
    curvature = penalty.curvature()
    if number is None:
        assert curvature is None
        return
    assert curvature.shape == (1, 4)
    # Differences of the penalty, away from the kink of its other part.
    at, step = rng.normal(size=[3, 4]) + weight.numpy(), 1e-3
    for row, column in ((0, 1), (2, 3)):
        unit = np.zeros([3, 4])
        unit[row, column] = step
        second = penalty(at + unit) + penalty(at - unit) - 2 * penalty(at)
        np.testing.assert_allclose(
            second / step**2, curvature[0, column], rtol=1e-5
        )
