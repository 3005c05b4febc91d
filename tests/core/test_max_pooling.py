"""Max pooling: the values of TensorFlow's, and its second derivatives."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hposgld.core import max_pooling
from keras_hposgld.core.derivatives import linearize_gradient
from keras_hposgld.core.second_derivatives import differentiable_twice

# Arguments of the layer, the shape of its input, whether ours serves it.
CASES = {
    "plain": (dict(pool_size=2), (3, 6, 4, 2), True),
    "three by two": (dict(pool_size=(3, 2)), (2, 6, 4, 3), True),
    "rows left over": (dict(pool_size=2), (2, 7, 5, 2), True),
    "padded where nothing is": (
        dict(pool_size=2, padding="same"),
        (2, 6, 4, 2),
        True,
    ),
    "padded": (dict(pool_size=2, padding="same"), (2, 7, 5, 2), False),
    "overlapping": (dict(pool_size=3, strides=2), (2, 7, 7, 2), False),
    "apart": (dict(pool_size=2, strides=3), (2, 8, 8, 2), False),
    "one dimension": (None, (2, 8, 2), False),
}


@pytest.fixture(params=list(CASES))
def case(request, rng):
    arguments, shape, served = CASES[request.param]
    if arguments is None:
        layer = keras.layers.MaxPooling1D(2)
    else:
        layer = keras.layers.MaxPooling2D(**arguments)
    # Few different numbers: many windows have their maximum twice.
    x = tf.constant(rng.integers(4, size=shape), tf.float32)
    return layer, x, served


def pulled_back(layer, x, vector):
    """Value, gradient and a product with the Hessian of a pooled objective."""
    factors = tf.reshape(tf.range(tf.size(x), dtype=x.dtype) / 7.0, x.shape)

    def objective(params):
        y = layer(params[0] * factors)
        return tf.reduce_sum(y**3), None

    linearized = linearize_gradient(objective, [x], [x])
    return (
        linearized.value,
        linearized.gradient[0],
        linearized.pullback([vector])[0],
    )


def test_derivatives_are_those_of_tensorflows_own(case, rng, run, monkeypatch):
    layer, x, _ = case
    vector = tf.constant(rng.normal(size=x.shape), tf.float32)
    ours = run(lambda: pulled_back(layer, x, vector))
    monkeypatch.setattr(max_pooling, "_window", lambda *_: None)
    theirs = pulled_back(layer, x, vector)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_what_is_not_served_is_tensorflows(case, monkeypatch):
    layer, x, served = case
    calls = []
    own = max_pooling._tensorflow_max_pool
    monkeypatch.setattr(
        max_pooling,
        "_tensorflow_max_pool",
        lambda *args: calls.append(1) or own(*args),
    )
    with differentiable_twice():
        layer(x)
    assert bool(calls) is not served


def test_the_slow_kernel_is_gone():
    layer = keras.layers.MaxPooling2D(2)

    def operations():
        graph = tf.function(
            lambda x: pulled_back(layer, x, x)[2], autograph=False
        ).get_concrete_function(tf.TensorSpec((2, 4, 4, 1)))
        names = {op.type for op in graph.graph.get_operations()}
        for function in graph.graph.as_graph_def().library.function:
            names |= {node.op for node in function.node_def}
        return names

    assert "MaxPoolGrad" in operations()
    assert "MaxPoolGradGrad" not in operations()
