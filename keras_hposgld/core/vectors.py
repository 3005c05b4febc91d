"""Vectors held as lists of tensors, the only arithmetic estimators need.

`None` stands for zero where a function says so: a derivative with respect to
what nothing depends on.
"""

import math
from typing import Any
from typing import NamedTuple

import tensorflow as tf


class Multiple(NamedTuple):
    """A number times a vector, left so: to multiply takes a pass over it."""

    number: Any
    vector: list


def zeros_like(vector: list) -> list:
    """Zeros shaped like `vector`."""
    return [tf.zeros_like(tensor) for tensor in vector]


def add(*vectors: list) -> list:
    """The sum of vectors; `None` stands for zero, and for a sum of zeros."""

    def one(parts: tuple) -> tf.Tensor | None:
        given = [part for part in parts if part is not None]
        return sum(given[1:], start=given[0]) if given else None

    return [one(parts) for parts in zip(*vectors, strict=True)]


def scaled(scale: Any, vector: list) -> list:
    """`scale * vector`; `None` stands for zero and stays it."""
    if isinstance(scale, float) and scale == 1.0:
        return vector
    return [
        None if part is None else _in_dtype(scale, part.dtype) * part
        for part in vector
    ]


def pack(vector: list) -> list:
    """A vector for the state of a loop, which cannot hold `None`."""
    return [() if part is None else part for part in vector]


def unpack(packed: list) -> list:
    """What `pack` was given."""
    return [None if isinstance(part, tuple) else part for part in packed]


def with_zeros(vector: list, like: list) -> list:
    """A vector with zeros in place of `None`."""
    return [
        tf.zeros_like(other) if part is None else part
        for part, other in zip(vector, like, strict=True)
    ]


def plus(left: list, right: list) -> list:
    """`left + right`; `None` on the right stands for zero."""
    return [a if b is None else a + b for a, b in zip(left, right, strict=True)]


def plus_scaled(left: list, scale: Any, right: list) -> list:
    """`left + scale * right`, in the dtypes of `left`.

    `None` on the right stands for zero.
    """
    return [
        a if b is None else _plus_scaled(a, scale, tf.cast(b, a.dtype))
        for a, b in zip(left, right, strict=True)
    ]


def _plus_scaled(a: tf.Tensor, scale: Any, b: tf.Tensor) -> tf.Tensor:
    if isinstance(scale, float) and scale in (0.0, -1.0):
        return a - b if scale else a  # without a pass for the product
    # A difference, which TensorFlow leaves as it is. It merges sums, and makes
    # a temporary variable of a sum of three large tensors. Where one of them
    # is a variable of a loop, that variable is made once too often, after the
    # last step, and the next call of the graph fails.
    return a - (-_in_dtype(scale, a.dtype)) * b


def _in_dtype(scale: Any, dtype: tf.DType) -> tf.Tensor:
    # A cast would take a Python float through float32.
    if isinstance(scale, float):
        return tf.constant(scale, dtype)
    return tf.cast(scale, dtype)


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


def times_rows(rows: list, vector: list) -> tf.Tensor:
    """A vector times a Jacobian with one row for each direction."""
    return tf.add_n(
        [
            tf.cast(
                tf.linalg.matvec(
                    tf.reshape(part, [part.shape[0], -1]),
                    tf.reshape(other, [-1]),
                ),
                vector[0].dtype,
            )
            for part, other in zip(rows, vector, strict=True)
        ]
    )


def agreement(vector: list, reference: list) -> tuple[float, float]:
    """Cosine of the angle between two vectors, and the ratio of lengths.

    A vector of length zero has no direction: the cosine is then 0. The ratio
    to a reference of length zero is infinite, or 1 if both have that length.
    """
    length, reference_length = float(norm(vector)), float(norm(reference))
    if reference_length == 0.0:
        return 0.0, 1.0 if length == 0.0 else math.inf
    if length == 0.0:
        return 0.0, 0.0
    cosine = float(dot(vector, reference)) / (length * reference_length)
    return cosine, length / reference_length


def component_along(vector: list, sample: list) -> tf.Tensor:
    """The length of a sample's projection on a vector, zero where that is."""
    return tf.math.divide_no_nan(dot(vector, sample), norm(vector))
