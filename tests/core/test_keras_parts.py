"""Second derivatives of all that Keras offers, against differences.

TensorFlow cuts a second derivative without a word in two ways: an operation is
registered as not differentiable, or its gradient stops the derivative itself.
The first way shows in what TensorFlow looks up on its way back, the second in
the numbers.
"""

import collections
import inspect

import keras
import keras_parts
import numpy as np
import pytest
import tensorflow as tf
from keras_parts import LAYERS
from keras_parts import VARIANTS
from tensorflow.python.framework import ops

from keras_hposgld.core.derivatives import directional_derivative
from keras_hposgld.core.derivatives import linearize_gradient
from keras_hposgld.core.missing_derivatives import MissingSecondDerivativeError
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import with_zeros

# Registered as not differentiable, and rightly: their outputs do not change
# with their inputs.
CONSTANT = {"OnesLike", "Shape", "ZerosLike"}

# Keras itself stops a derivative here: the singular vectors of the kernel are
# constants to it. The gradient is then right where the power iteration has
# converged, the second derivative is not.
STOPPED_BY_KERAS = {"SpectralNormalization"}


# Those whose derivatives are made in ways of their own, and some beside.
BOTH_MODES = [
    "BatchNormalization",
    "Embedding",
    "MaxPooling2D",
    "MultiHeadAttention",
    "Resizing",
    "SeparableConv2D",
    "UnitNormalization",
    *VARIANTS,
]


@pytest.fixture
def cut(monkeypatch):
    """Names of the operations that TensorFlow takes no derivative of."""
    names = set()
    registry = ops.gradient_registry
    own = type(registry).lookup

    def lookup(self, name):
        gradient = own(self, name)
        if self is registry and gradient is None:
            names.add(name)
        return gradient

    monkeypatch.setattr(type(registry), "lookup", lookup)
    return names


@pytest.fixture(params=[*LAYERS, *VARIANTS])
def layer(request):
    """Name of a layer, with the precision set that it has."""
    if request.param not in keras_parts.FLOAT32:
        request.getfixturevalue("float64")
    return request.param


def names_of(module, base):
    """The names of each class that a module of Keras's offers."""
    names = collections.defaultdict(set)
    for name, value in vars(module).items():
        if inspect.isclass(value) and issubclass(value, base):
            names[value].add(name)
    return names.values()


def test_every_part_of_keras_is_in_a_table():
    for names in names_of(keras.layers, keras.Layer):
        assert names & (LAYERS.keys() | keras_parts.LEFT_OUT), names
    for names in names_of(keras.losses, keras.Loss):
        known = keras_parts.LOSSES.keys() | keras_parts.LOSSES_LEFT_OUT
        assert names & known, names
    assert len(keras_parts.ACTIVATIONS) > 25


def compare(objective, params, rng, cut):
    """A product with the Hessian against differences of the gradient."""

    def linearized(params, sources):
        return linearize_gradient(
            lambda params: (objective(params), None), params, sources
        )

    vector = [tf.cast(rng.normal(size=p.shape), p.dtype) for p in params]
    inner = linearized(params, params)
    cut.clear()
    products = inner.pullback(vector)
    assert cut <= CONSTANT
    # The errors of a gradient in float32, 1e-7 of its size, are divided by the
    # step.
    step, rtol = 1e-5, 1e-6
    if keras.config.floatx() == "float32":
        step, rtol = 1e-3, 2e-3
    ahead, behind = (
        linearized(plus_scaled(params, sign * step, vector), []).gradient
        for sign in (1.0, -1.0)
    )
    scale = max(np.abs(a).max() for a in inner.gradient)
    for product, a, b in zip(products, ahead, behind, strict=True):
        np.testing.assert_allclose(
            0.0 if product is None else product,
            (a - b) / (2 * step),
            rtol=rtol,
            atol=rtol * scale,
        )


def compare_modes(objective, params, rng):
    """The same product by forward accumulators, in a graph."""

    def linearized(params, sources=()):
        return linearize_gradient(
            lambda params: (objective(params), None), params, list(sources)
        )

    vector = [tf.cast(rng.normal(size=p.shape), p.dtype) for p in params]

    @tf.function(autograph=False)
    def both():
        products = linearized(params, params).pullback(vector)
        forward = directional_derivative(
            lambda params: linearized(params).gradient, params, vector
        )
        return with_zeros(products, vector), forward

    products, forward = both()
    scale = max(np.abs(product).max() for product in products)
    rtol = 1e-9 if keras.config.floatx() == "float64" else 1e-4
    for a, b in zip(products, forward, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)


def test_layer(layer, rng, cut):
    if layer in STOPPED_BY_KERAS:
        pytest.skip("Keras stops the derivative")
    made = (LAYERS | VARIANTS)[layer]
    compare(*keras_parts.layer_objective(made, rng), rng, cut)


@pytest.mark.slow
@pytest.mark.parametrize("layer", BOTH_MODES, indirect=True)
def test_layer_in_both_modes(layer, rng):
    made = (LAYERS | VARIANTS)[layer]
    compare_modes(*keras_parts.layer_objective(made, rng), rng)


@pytest.mark.parametrize("layer", ["LSTM", "RandomRotation"], indirect=True)
def test_layer_that_forward_mode_fails_for_is_refused(layer, rng):
    # A loop in a graph; `tf.ensure_shape`.
    objective = keras_parts.layer_objective(LAYERS[layer], rng)
    with pytest.raises(MissingSecondDerivativeError, match="Use `RMD`"):
        compare_modes(*objective, rng)


@pytest.mark.parametrize("name", list(keras_parts.ACTIVATIONS))
def test_activation(name, rng, cut, float64):
    activation = keras_parts.ACTIVATIONS[name]
    x = tf.constant(rng.normal(size=keras_parts.VECTOR))
    objective = keras_parts.cubed(
        lambda params: activation(params[0]), [x], rng
    )
    compare(*objective, rng, cut)


@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("name", list(keras_parts.LOSSES))
def test_loss(name, from_logits, rng, cut, float64):
    cls = getattr(keras.losses, name)
    if not from_logits:
        loss = cls()
    elif "from_logits" in inspect.signature(cls).parameters:
        loss = cls(from_logits=True)
    else:
        pytest.skip("it has one form")
    y_true = keras_parts.TARGETS[keras_parts.LOSSES[name]](rng)
    logits = tf.constant(rng.normal(size=keras_parts.VECTOR))
    y_pred = logits if from_logits else tf.nn.softmax(logits)
    compare(lambda params: loss(y_true, params[0]), [y_pred], rng, cut)
