"""When a pass over a tensor costs more than to have XLA compile it away."""

import tensorflow as tf

COMPILED_SIZE = 2**16  # entries


def is_large(shape: tf.TensorShape) -> bool:
    """Whether a tensor of this shape is worth a compilation."""
    return shape.is_fully_defined() and shape.num_elements() >= COMPILED_SIZE
