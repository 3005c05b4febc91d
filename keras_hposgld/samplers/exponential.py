"""The step that solves a quadratic penalty exactly.

Where the inner objective has a quadratic part of curvature h, such as a penalty
`h / 2 * w**2`, and L is the rest of it, the Langevin equation of that part has
a solution. With a step of eta, e = exp(-eta h), the temperature tau of the law
and z standard normal, the step

    w <- e w - (1 - e) / h dL/dw + sqrt((1 - e**2) tau / h) z

follows it for any eta h, and takes L in a straight line. In terms of the
gradient of the whole objective, wherever the penalty has its center, it is

    w <- w - eta phi(eta h) dL_T/dw + sqrt(2 eta tau phi(2 eta h)) z,

with phi(x) = (1 - exp(-x)) / x. So it is a force scale A = eta phi(eta h) and
a noise, which h and the learning rate determine. At h = 0 it is Euler's step.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

SLOT = "curvature"


def phi(x: tf.Tensor) -> tf.Tensor:
    """`(1 - exp(-x)) / x`, and 1 at 0, with finite derivatives.

    Args:
        x: Tensor in float32 or float64.
    """
    cut = np.sqrt(np.finfo(x.dtype.as_numpy_dtype).eps)
    is_small = tf.abs(x) < cut
    safe = tf.where(is_small, tf.ones_like(x), x)
    return tf.where(is_small, 1.0 - x / 2, -tf.math.expm1(-safe) / safe)


def force_scale(rate: tf.Tensor, own: dict) -> tf.Tensor:
    """A, from the learning rate and what a state holds for a weight."""
    rate, h = _wide(rate), _wide(_held(own))
    return tf.cast(rate * phi(rate * h), own[SLOT].dtype)


def noise_variance(rate: tf.Tensor, own: dict) -> tf.Tensor:
    """The variance of the noise, over that of Euler's step."""
    variance = phi(2.0 * _wide(rate) * _wide(_held(own)))
    return tf.cast(variance, own[SLOT].dtype)


def _held(own: dict) -> tf.Tensor:
    if SLOT not in own:
        raise _unknown("a state without one")
    return own[SLOT]


def _wide(x: tf.Tensor) -> tf.Tensor:
    """In float32 at least: half precision has no place for `rate * h`."""
    return x if x.dtype.size >= 4 else tf.cast(x, tf.float32)


def _unknown(received: str) -> ValueError:
    return ValueError(
        '`integrator="exponential"` needs to know the curvature of the '
        f"quadratic part of the inner objective. Received: {received}. Pass "
        "`BilevelProblem(curvature=lambda s: 2 * s)` for a penalty `s * w**2`, "
        'or use integrator="euler".'
    )


def slots(params: list, curvature: list | None) -> list:
    """What the state of a sampler holds of a curvature.

    Args:
        params: List of tensors.
        curvature: List of tensors that broadcast against them, `None` for 0.

    Raises:
        ValueError: If there is none, or one of another shape.
    """
    if curvature is None:
        raise _unknown("a problem with curvature=None")
    if len(curvature) != len(params):
        raise ValueError(
            "`curvature` must return a structure like the params, with None "
            f"where there is none. Received: {len(curvature)} parts for "
            f"{len(params)} params."
        )
    return [
        _like(param, part)
        for param, part in zip(params, curvature, strict=True)
    ]


def _like(param: tf.Tensor, curvature: Any) -> tf.Tensor:
    if curvature is None:
        return tf.zeros([], param.dtype)
    # Held fixed in derivatives, as all scales of a step are.
    curvature = tf.stop_gradient(tf.cast(curvature, param.dtype))
    try:
        shape = tf.broadcast_static_shape(curvature.shape, param.shape)
    except ValueError:
        shape = None
    if shape is None or not shape.is_compatible_with(param.shape):
        raise ValueError(
            "`curvature` must return tensors that broadcast against the "
            f"params. Received: one of shape {tuple(curvature.shape)} for "
            f"params of shape {tuple(param.shape)}."
        )
    return curvature


def of_weight(weight: keras.Variable) -> tf.Tensor | None:
    """The curvature of the quadratic penalty that a Keras weight has.

    Returns:
        A tensor that broadcasts against the weight, from its regularizer:
        Keras's L2 and L1L2, or one with a method `curvature`. `None` for
        another one, or where there is none.
    """
    regularizer = getattr(weight, "regularizer", None)
    kinds = keras.regularizers.L2 | keras.regularizers.L1L2
    if isinstance(regularizer, kinds):
        return tf.convert_to_tensor(2.0 * regularizer.l2, weight.dtype)
    answer = getattr(regularizer, "curvature", None)
    return None if answer is None else answer()
