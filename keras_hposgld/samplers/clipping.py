"""Clipping of gradients, as Keras's optimizers do it."""

import keras
from keras import ops


def clip_as(optimizer: keras.optimizers.Optimizer, gradients: list) -> list:
    """Clips gradients as an optimizer's `apply` does, differentiably."""
    if optimizer.global_clipnorm and not optimizer.clipnorm:
        return _clip_by_global_norm(gradients, optimizer.global_clipnorm)
    # Private to Keras, and used so that what is clipped apart from `apply` is
    # clipped in no other way.
    return optimizer._clip_gradients(gradients)


def _clip_by_global_norm(gradients: list, limit: float) -> list:
    """As Keras does, whose derivative is NaN where all gradients are zero."""
    squares = [ops.sum(ops.square(g)) for g in gradients if g is not None]
    square = ops.sum(ops.stack(squares))
    # A norm is taken only where it is above the limit, so that no derivative
    # divides by a small one.
    is_above = square > limit**2
    norm = ops.sqrt(ops.where(is_above, square, 1.0))
    smallest = ops.minimum(1.0 / norm, 1.0 / limit)
    scale = limit * ops.where(is_above, smallest, 1.0 / limit)
    scale += square - square  # NaN if it is not finite
    return [g if g is None else g * scale for g in gradients]
