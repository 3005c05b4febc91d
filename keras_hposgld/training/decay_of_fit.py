"""A learned weight decay in the steps that Keras takes.

As in Keras's `AdamW`, a step takes `learning_rate * strength * weight` off each
weight before it follows the gradient. Keras calls `optimizer.apply` with every
gradient, also where no step comes of it: a gradient that has overflowed in
float16 is left out, one that is accumulated waits for others. Then nothing
decays.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.training.placement import of_model
from keras_hposgld.training.placement import Placement


def plain(optimizer: keras.optimizers.Optimizer) -> Any:
    """The optimizer that takes the steps, without one that scales the loss."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def is_step(
    optimizer: keras.optimizers.Optimizer, gradients: list, placement: Placement
) -> Any:
    """Whether the weights move by gradients that `apply` is given now.

    Args:
        optimizer: That of the model.
        gradients: List of tensors, as `apply` is given them, or `None`.
        placement: `OneReplica` or `Replicas`.

    Returns:
        Boolean tensor, or `True`.
    """
    is_taken: Any = True
    inner = plain(optimizer)
    if inner is not optimizer:
        finite = [
            tf.reduce_all(tf.math.is_finite(tf.convert_to_tensor(gradient)))
            for gradient in gradients
            if gradient is not None
        ]
        (share,) = placement.average(
            [tf.cast(tf.reduce_all(finite), tf.float32)]
        )
        is_taken = share == 1.0
    number = inner.gradient_accumulation_steps
    if number:
        # Private to Keras: how many gradients there have been.
        is_taken &= (inner._iterations.value + 1) % number == 0
    return is_taken


def take_off(
    weights: list, amounts: list, is_taken: Any, placement: Placement
) -> None:
    """Takes amounts off weights, if a step is taken.

    Args:
        weights: List of `keras.Variable`s.
        amounts: List of tensors like them, `None` for nothing.
        is_taken: Boolean tensor, or `True`.
        placement: `OneReplica` or `Replicas`.
    """
    if is_taken is not True:  # else it would cost two copies of the weights
        amounts = [
            a if a is None else tf.where(is_taken, a, tf.zeros_like(a))
            for a in amounts
        ]
    placement.subtract(weights, amounts)


@contextlib.contextmanager
def decay_held_fixed(model: keras.Model) -> Iterator[None]:
    """Lets the optimizer of a model apply the learned decay of its weights.

    Args:
        model: Compiled and built `keras.Model`. In this context it is to trace
            its step anew, and after it again.
    """
    decaying = [
        weight
        for weight in model.trainable_variables
        if getattr(weight.regularizer, "decays", False)
    ]
    if not decaying:
        yield
        return
    optimizer, placement = model.optimizer, of_model(model)
    keras_apply = optimizer.apply

    def apply(grads: Any, trainable_variables: Any = None) -> None:
        grads = list(grads)
        # A step of the user's own may apply its gradients part by part.
        given = {id(v) for v in trainable_variables or decaying}
        weights = [weight for weight in decaying if id(weight) in given]
        amounts = [
            weight.regularizer.decay(tf.convert_to_tensor(weight))
            * tf.cast(optimizer.learning_rate, weight.dtype)
            for weight in weights
        ]
        is_taken = is_step(optimizer, grads, placement)
        take_off(weights, amounts, is_taken, placement)
        keras_apply(grads, trainable_variables)

    # Not by `setattr`, which Keras would track.
    vars(optimizer)["apply"] = apply
    try:
        yield
    finally:
        del vars(optimizer)["apply"]
