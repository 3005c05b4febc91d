"""Elementwise functions that XLA compiles to one pass over the memory."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

# From this size on, a pass over a tensor costs more than to have XLA compile
# it away.
COMPILED_SIZE = 2**16  # entries


def is_large(shape: tf.TensorShape) -> bool:
    """Whether a pass over a tensor of this shape is worth a compilation."""
    return shape.is_fully_defined() and shape.num_elements() >= COMPILED_SIZE


def in_one_pass(function: Callable) -> Callable:
    """Has XLA compile an elementwise function where that saves time.

    That is in a graph, where one of its arguments is large. The last bits of
    the results may be others than TensorFlow's own.
    """
    compiled = tf.function(function, autograph=False, jit_compile=True)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        tensors = filter(tf.is_tensor, tf.nest.flatten(arguments))
        worthwhile = any(is_large(tensor.shape) for tensor in tensors)
        if tf.executing_eagerly() or not worthwhile:
            return function(*arguments)
        return compiled(*arguments)

    return call
