"""Second derivatives that TensorFlow has wrong, or makes slowly.

Wrong: `tf.nn.moments`, on which Keras's batch, layer and group normalization
rest, takes the mean inside of the variance for a constant. That changes no
value and no gradient, but products with second derivatives of a normalized
model come out tens of per cent off. With c that constant, the variance is

    mean((x - c)^2) - (mean(x) - c)^2,

of which TensorFlow leaves out the second term. It is zero, and so is its
gradient; its second derivative is not.

Slow: those of max pooling, see `max_pooling`. What TensorFlow's registry lacks
is in `registered_gradients`, what nobody has in `missing_derivatives`.
"""

import contextlib
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from keras_hposgld.core.max_pooling import max_pool
from keras_hposgld.core.missing_derivatives import ctc_loss
from keras_hposgld.core.registered_gradients import register_gradients

_tensorflow_moments = tf.nn.moments
_lock = threading.Lock()
_depth = 0

register_gradients()


def moments(
    x: Any,
    axes: Any,
    shift: Any = None,
    keepdims: bool = False,
    name: str | None = None,
) -> tuple:
    """As `tf.nn.moments`, for derivatives of any order."""
    mean, variance = _tensorflow_moments(x, axes, shift, keepdims, name)
    return mean, variance - tf.square(mean - tf.stop_gradient(mean))


OURS: dict[str, Callable] = {
    "moments": moments,
    "max_pool": max_pool,
    "ctc_loss": ctc_loss,
}
TENSORFLOWS = {name: getattr(tf.nn, name) for name in OURS}


@contextlib.contextmanager
def differentiable_twice() -> Iterator[None]:
    """Puts our functions in place of `tf.nn`'s, for Keras's layers to use.

    Replicas are traced in threads that take turns: the last one to leave puts
    TensorFlow's own back.
    """
    global _depth
    with _lock:
        _depth += 1
        _put(OURS)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                _put(TENSORFLOWS)


def _put(functions: dict[str, Callable]) -> None:
    for name, function in functions.items():
        setattr(tf.nn, name, function)
