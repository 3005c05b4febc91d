"""Vectors held as lists of tensors, the only arithmetic estimators need.

`None` in the second list stands for zero: a derivative with respect to what
nothing depends on.
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
    return [
        a if b is None else a + tf.cast(scale, a.dtype) * tf.cast(b, a.dtype)
        for a, b in zip(left, right, strict=True)
    ]
