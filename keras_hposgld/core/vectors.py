"""Vectors held as lists of tensors, the only arithmetic estimators need.

`None` in the second list of a sum stands for zero: a derivative with respect
to what nothing depends on.
"""

import tensorflow as tf


def zeros_like(vector: list) -> list:
    """Zeros shaped like `vector`."""
    return [tf.zeros_like(tensor) for tensor in vector]


def plus(left: list, right: list) -> list:
    """`left + right`."""
    return [a if b is None else a + b for a, b in zip(left, right, strict=True)]


def plus_scaled(left: list, scale, right: list) -> list:
    """`left + scale * right`, in the dtypes of `left`."""

    def in_dtype(dtype):
        # A cast would take a Python float through float32.
        if isinstance(scale, float):
            return tf.constant(scale, dtype)
        return tf.cast(scale, dtype)

    return [
        a if b is None else a + in_dtype(a.dtype) * tf.cast(b, a.dtype)
        for a, b in zip(left, right, strict=True)
    ]


def dot(left: list, right: list) -> tf.Tensor:
    """The inner product, in the dtype of the first tensor."""
    dtype = left[0].dtype
    return sum(
        (
            tf.cast(tf.reduce_sum(a * tf.cast(b, a.dtype)), dtype)
            for a, b in zip(left, right, strict=True)
            if b is not None
        ),
        start=tf.zeros([], dtype),
    )


def norm(vector: list) -> tf.Tensor:
    """The Euclidean norm, in the dtype of the first tensor."""
    # `l2_loss` is half of the sum of squares, and makes no temporary tensor.
    halves = [tf.cast(tf.nn.l2_loss(part), vector[0].dtype) for part in vector]
    return tf.sqrt(2.0 * sum(halves))


def agreement(vector: list, reference: list) -> tuple[float, float]:
    """Cosine of the angle between two vectors, and the ratio of lengths."""
    lengths = float(norm(vector)), float(norm(reference))
    cosine = float(dot(vector, reference)) / (lengths[0] * lengths[1])
    return cosine, lengths[0] / lengths[1]


def component_along(vector: list, sample: list) -> tf.Tensor:
    """The length of a sample's projection on a vector, zero where that is."""
    return tf.math.divide_no_nan(dot(vector, sample), norm(vector))


# From this size on, a pass over a tensor costs more than to have XLA compile
# it away.
COMPILED_SIZE = 2**16  # entries


def is_large(shape: tf.TensorShape) -> bool:
    """Whether a pass over a tensor of this shape is worth a compilation."""
    return shape.is_fully_defined() and shape.num_elements() >= COMPILED_SIZE
