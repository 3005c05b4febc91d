"""Max pooling whose second derivatives are fast on a CPU.

The derivative of `MaxPoolGrad` picks, of each window, the entry where the
maximum is. TensorFlow's kernel for that, `MaxPoolGradGrad`, takes as long as
two convolutions. Where the windows neither overlap nor reach over the edge,
the same entries come from two fast kernels: the gradient of the pooling for
ones says where the maxima are, and a mean over each window of what is there,
times the size of the window, is the one entry that is not zero.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_tensorflow_max_pool = tf.nn.max_pool


def max_pool(
    input: tf.Tensor,
    ksize: Any,
    strides: Any,
    padding: Any,
    data_format: str | None = None,
    name: str | None = None,
) -> tf.Tensor:
    """As `tf.nn.max_pool`, which it leaves all that it does not serve to."""
    window = _window(input, ksize, strides, padding, data_format)
    if window is None:
        return _tensorflow_max_pool(
            input, ksize, strides, padding, data_format, name
        )
    options = {"ksize": window, "strides": window, "padding": "VALID"}

    @tf.custom_gradient
    def pool(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        y = tf.raw_ops.MaxPool(input=x, **options)

        @tf.custom_gradient
        def backward(upstream: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            def placed(grad: tf.Tensor) -> tf.Tensor:
                return tf.raw_ops.MaxPoolGrad(
                    orig_input=x, orig_output=y, grad=grad, **options
                )

            def picked(cotangent: tf.Tensor) -> tf.Tensor:
                at_maximum = placed(tf.ones_like(y)) * cotangent
                return math.prod(window) * tf.nn.avg_pool2d(
                    at_maximum, window, window, "VALID"
                )

            return placed(upstream), picked

        return y, backward

    return pool(input)


def _window(
    x: tf.Tensor,
    ksize: Any,
    strides: Any,
    padding: Any,
    data_format: str | None,
) -> list[int] | None:
    """Height and width of the windows, with ones around; `None`: not served."""
    if x.shape.rank != 4 or data_format not in (None, "NHWC"):
        return None
    size, stride = (
        [n, n] if isinstance(n, int) else list(n) for n in (ksize, strides)
    )
    if len(size) != 2 or size != stride or padding not in ("VALID", "SAME"):
        return None
    places = x.shape[1:3]
    is_even = places.is_fully_defined() and not any(
        length % part for length, part in zip(places, size, strict=True)
    )
    return [1, *size, 1] if padding == "VALID" or is_even else None
