"""Derivatives of image resizing, against products with its matrix.

A resizing is linear: what it makes of the unit images is its matrix. In float64
a function of that matrix has derivatives of any order, by matrix products.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.ops import image_grad

import keras_hposgld as hs
from keras_hposgld.core import registered_gradients
from keras_hposgld.core.derivatives import directional_derivative
from keras_hposgld.core.derivatives import linearize_gradient

SHAPE = (4, 6)
SIZES = {"up": (5, 7), "down": (2, 3), "both": (7, 4)}  # no whole ratios
BILINEAR = {
    "corners": dict(align_corners=True),
    "half pixels": dict(half_pixel_centers=True),
    "plain": dict(),
}


def bilinear(options, size):
    return lambda x: tf.raw_ops.ResizeBilinear(images=x, size=size, **options)


def by_image_module(method, size, antialias=False):
    return lambda x: tf.image.resize(x, size, method, antialias=antialias)


CASES = {
    f"bilinear, {option}, {name}": bilinear(BILINEAR[option], size)
    for option in BILINEAR
    for name, size in SIZES.items()
}
for method in ("bicubic", "nearest", "lanczos3"):
    CASES[method] = by_image_module(method, SIZES["both"])
CASES["antialias"] = by_image_module("bilinear", SIZES["down"], True)


def matrix_of(resize):
    """What a resizing does to an image of one channel, in float64."""
    number = SHAPE[0] * SHAPE[1]
    images = tf.reshape(tf.eye(number), (number, *SHAPE, 1))
    return tf.cast(tf.reshape(resize(images), (number, -1)), tf.float64)


def objective_of(resize, shape):
    """Not linear before nor behind the resizing."""

    def objective(x):
        y = tf.reshape(resize(tf.reshape(x**2, shape)), [-1])
        factors = 0.1 + np.arange(y.shape[0]) / 10.0
        return tf.reduce_sum(tf.cast(factors, y.dtype) * y**3)

    return objective


def products(objective, x, vector):
    """The gradient, the Hessian times a vector, and the third derivative."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        inner = linearize_gradient(lambda p: (objective(p[0]), None), [x], [x])
        hessian = inner.pullback([vector])[0]
    third = tape.gradient(hessian, x, output_gradients=vector)
    return inner.gradient[0], hessian, third


def forward_product(objective, x, vector):
    """The Hessian times a vector, by forward mode over a gradient."""

    def gradient(params):
        with tf.GradientTape() as tape:
            tape.watch(params)
            value = objective(params[0])
        return tape.gradient(value, params)

    return directional_derivative(gradient, [x], [vector])[0]


@pytest.fixture
def point(rng):
    x = tf.constant(rng.uniform(0.5, 1.5, size=SHAPE[0] * SHAPE[1]))
    return x, tf.constant(rng.normal(size=x.shape))


def expected_of(resize, point):
    matrix = matrix_of(resize)

    def by_matrix(image):
        return tf.linalg.matvec(matrix, tf.reshape(image, [-1]), True)

    return products(objective_of(by_matrix, (1, *SHAPE, 1)), *point)


def check(found, expected, rtol=1e-5):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("name", list(CASES))
def test_derivatives_are_those_of_the_matrix(name, point):
    objective = objective_of(CASES[name], (1, *SHAPE, 1))
    found = products(objective, *(tf.cast(p, tf.float32) for p in point))
    check(found, expected_of(CASES[name], point))


def test_derivatives_hold_in_every_mode(run, point):
    # One trace in each mode, by the route that Keras takes.
    resize = by_image_module("bilinear", SIZES["both"])
    objective = objective_of(resize, (1, *SHAPE, 1))
    x, vector = (tf.cast(p, tf.float32) for p in point)
    expected = expected_of(resize, point)
    found = run(lambda x: products(objective, x, vector), x)
    check(found, expected, rtol=5e-5)
    forward = run(lambda x: forward_product(objective, x, vector), x)
    check([forward], expected[1:2], rtol=5e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtype_of_the_image_is_that_of_its_derivatives(dtype, point):
    resize = CASES["bilinear, half pixels, both"]
    objective = objective_of(resize, (1, *SHAPE, 1))
    found = products(objective, *(tf.cast(p, dtype) for p in point))
    assert {part.dtype for part in found} == {tf.as_dtype(dtype)}
    rtol = {"float16": 0.02, "bfloat16": 0.1, "float64": 1e-5}[dtype]
    check(
        [tf.cast(p, tf.float64) for p in found],
        expected_of(resize, point),
        rtol,
    )


def test_a_function_that_was_traced_before_is_served(point):
    resize = tf.function(CASES["bilinear, plain, both"], autograph=False)
    x, vector = (tf.cast(p, tf.float32) for p in point)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = objective_of(resize, (1, *SHAPE, 1))(x)
    tape.gradient(value, x)
    found = products(objective_of(resize, (1, *SHAPE, 1)), x, vector)
    check(found, expected_of(resize, point))


def test_gradient_is_tensorflows_own(rng):
    images = tf.constant(rng.normal(size=(2, 4, 5, 3)), tf.float32)
    upstream = tf.constant(rng.normal(size=(2, 7, 3, 3)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        y = tf.image.resize(images, (7, 3))
    found = tape.gradient(y, images, output_gradients=upstream)
    op = y_op(images, (7, 3))
    own, _ = image_grad._ResizeBilinearGrad(op, upstream)
    np.testing.assert_array_equal(found, own)


def y_op(images, size):
    """What TensorFlow's gradient function reads of an operation."""

    class Operation:
        inputs = (images, size)

        def get_attr(self, name):
            return name == "half_pixel_centers"

    return Operation()


def test_entries_of_tensorflows_own_are_kept(monkeypatch):
    # As it will be where a later TensorFlow has the derivatives.
    registry = ops.gradient_registry
    names = {"ResizeBilinear", "ResizeBilinearGrad"}
    entries = {
        name: {"type": lambda op, upstream: None, "location": None}
        for name in names | registered_gradients.MISSING.keys()
    }
    monkeypatch.setattr(registry, "_registry", entries)
    before = {name: entry["type"] for name, entry in entries.items()}
    registered_gradients.register_gradients()
    after = {name: entry["type"] for name, entry in entries.items()}
    assert after == before


def test_meta_learning_through_a_resizing_is_that_of_differences(rng):
    images = rng.normal(size=(2, 10, 4, 4, 1)).astype("float32")
    targets = rng.normal(size=(2, 10, 1)).astype("float32")
    support = images[:, :5], targets[:, :5]
    query = images[:, 5:], targets[:, 5:]
    tasks = tf.data.Dataset.from_tensors((support, query))
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Conv2D(2, 3, activation="tanh"),
            keras.layers.UpSampling2D(2, interpolation="bilinear"),
            keras.layers.Conv2D(1, 2),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    learner = hs.MetaModel(model)
    learner.compile(
        hs.SGLD(0.3),
        loss="mse",
        hypergradient=hs.estimators.RMD(num_steps=2),
        hyper_optimizer=keras.optimizers.SGD(1.0),
    )
    learner.evaluate(tasks, verbose=0)
    start = model.get_weights()
    direction = [rng.normal(size=weight.shape) for weight in start]

    def outer_loss(distance):
        model.set_weights(
            [w + distance * d for w, d in zip(start, direction, strict=True)]
        )
        logs = learner.evaluate(tasks, verbose=0, return_dict=True)
        return logs["outer_loss"]

    expected = (outer_loss(0.01) - outer_loss(-0.01)) / 0.02
    model.set_weights(start)
    learner.fit(tasks, verbose=0)
    moved = zip(start, model.get_weights(), direction, strict=True)
    found = sum(((a - b) * d).sum() for a, b, d in moved)
    # Cut, the second derivative makes a difference of ten per cent here.
    np.testing.assert_allclose(found, expected, rtol=0.01)
