"""Second derivatives that TensorFlow has wrong, or makes slowly.

Wrong: `tf.nn.moments`, on which Keras's batch, layer and group normalization
rest, takes the mean inside of the variance for a constant. That changes no
value and no gradient, but products with second derivatives of a normalized
model come out tens of per cent off. With c that constant, the variance is

    mean((x - c)^2) - (mean(x) - c)^2,

of which TensorFlow leaves out the second term. It is zero, and so is its
gradient; its second derivative is not.

Slow: those of max pooling, see `max_pooling`.
"""

import contextlib
import threading
from collections.abc import Iterator

import tensorflow as tf

from keras_hposgld.core.max_pooling import max_pool

_tensorflow_moments = tf.nn.moments
_tensorflow_max_pool = tf.nn.max_pool
_lock = threading.Lock()
_depth = 0


def moments(x, axes, shift=None, keepdims=False, name=None) -> tuple:
    """As `tf.nn.moments`, for derivatives of any order."""
    mean, variance = _tensorflow_moments(x, axes, shift, keepdims, name)
    return mean, variance - tf.square(mean - tf.stop_gradient(mean))


@contextlib.contextmanager
def differentiable_twice() -> Iterator[None]:
    """Puts these functions in place of TensorFlow's, for Keras's layers to use.

    Replicas are traced in threads that take turns: the last one to leave puts
    TensorFlow's own back.
    """
    global _depth
    with _lock:
        _depth += 1
        tf.nn.moments, tf.nn.max_pool = moments, max_pool
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                tf.nn.moments = _tensorflow_moments
                tf.nn.max_pool = _tensorflow_max_pool
