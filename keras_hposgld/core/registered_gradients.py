"""Derivatives of TensorFlow's gradients that TensorFlow itself lacks.

Resizing of images is linear in the image, and so is its gradient in what comes
from above. The derivative of that gradient is the resizing again, and the
derivative of this is the gradient, as often as one likes. TensorFlow says so
for none of its kernels. Most of them lack the entry in its registry, and so
does the softsign: a second derivative is an error. They are registered here.

`ResizeBilinearGrad` is worse: it is registered as not differentiable. Second
derivatives of a bilinear resizing, and its forward derivatives, are zero
without a word. There the entry of the resizing itself is exchanged, because
TensorFlow's eager mode does not keep the inputs of `ResizeBilinearGrad`.

The registry is the one place that every route to a kernel passes: Keras's
layers, `tf.image`, raw operations, functions and saved models that were traced
before. It is set once, when this package is imported, since TensorFlow keeps
what it has looked up. Values and first derivatives stay what they are.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record  # what a tape sees
from tensorflow.python.framework import ops  # it holds the registry

OPTIONS = ("align_corners", "half_pixel_centers")


def register_gradients() -> None:
    """Tells TensorFlow what it lacks. Entries of its own are left to it."""
    registry = ops.gradient_registry
    for name, gradient in MISSING.items():
        if name not in registry.list():
            tf.RegisterGradient(name)(gradient)
    if registry.lookup("ResizeBilinearGrad") is None:
        # No public function exchanges an entry.
        entries = registry._registry
        entries["ResizeBilinear"]["type"] = _bilinear_gradient
        entries["ResizeBilinearGrad"]["type"] = _bilinear_gradient_gradient


def _bilinear_gradient(op: Any, upstream: tf.Tensor) -> tuple:
    """The gradient of `ResizeBilinear`, for derivatives of any order."""
    image, options = op.inputs[0], _attributes(op, OPTIONS)
    # Not by `tf.custom_gradient`, which a forward accumulator passes by in a
    # graph.
    with record.stop_recording():
        placed = tf.raw_ops.ResizeBilinearGrad(
            grads=upstream, original_image=image, **options
        )

    def resized(cotangent: tf.Tensor) -> list:
        return [_bilinear(cotangent, upstream, options)]

    record.record_operation("Placed", [placed], [upstream], resized)
    return placed, None


def _bilinear_gradient_gradient(op: Any, cotangent: tf.Tensor) -> tuple:
    grads = op.inputs[0]
    if grads is None:  # on a tape, which does not keep it
        return None, None
    return _bilinear(cotangent, grads, _attributes(op, OPTIONS)), None


def _bilinear(images: tf.Tensor, like: tf.Tensor, options: dict) -> tf.Tensor:
    return tf.raw_ops.ResizeBilinear(images=images, size=_size(like), **options)


def _bicubic(op: Any, cotangent: tf.Tensor) -> tuple:
    resized = tf.raw_ops.ResizeBicubic(
        images=cotangent, size=_size(op.inputs[0]), **_attributes(op, OPTIONS)
    )
    return resized, None


def _nearest(op: Any, cotangent: tf.Tensor) -> tuple:
    resized = tf.raw_ops.ResizeNearestNeighbor(
        images=cotangent, size=_size(op.inputs[0]), **_attributes(op, OPTIONS)
    )
    return resized, None


def _antialiased(op: Any, cotangent: tf.Tensor) -> tuple:
    grads, _, scale, translation = op.inputs
    resized = tf.raw_ops.ScaleAndTranslate(
        images=cotangent,
        size=_size(grads),
        scale=scale,
        translation=translation,
        **_attributes(op, ("kernel_type", "antialias")),
    )
    return resized, None, None, None


def _softsign(op: Any, cotangent: tf.Tensor) -> tuple:
    # The gradient is `grads / (1 + |x|)^2`.
    grads, x = op.inputs
    by_grads = cotangent / tf.square(1.0 + tf.abs(x))
    return by_grads, -2.0 * grads * by_grads * tf.sign(x) / (1.0 + tf.abs(x))


def _attributes(op: Any, names: tuple[str, ...]) -> dict:
    return {name: op.get_attr(name) for name in names}


def _size(images: tf.Tensor) -> tf.Tensor:
    return tf.shape(images)[1:3]


MISSING: dict[str, Callable] = {
    "ResizeBicubicGrad": _bicubic,
    "ResizeNearestNeighborGrad": _nearest,
    "ScaleAndTranslateGrad": _antialiased,
    "SoftsignGrad": _softsign,
}
