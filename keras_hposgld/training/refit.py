"""Plain training of fresh weights under learned hyperparameters."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.regularizers.weight_penalty import WeightPenalty
from keras_hposgld.training.export import clone
from keras_hposgld.training.export import copy_weights


def refit(
    learner: Any, optimizer: Any, x: Any, y: Any, **fit_arguments: Any
) -> keras.callbacks.History:
    """Trains fresh weights under learned strengths; see `BilevelModel.refit`.

    Only what is trained starts afresh: frozen layers and statistics stay.

    Args:
        learner: Compiled `BilevelModel`.
        optimizer: Keras optimizer, or `None` for the learner's sampler.
        x: As in `keras.Model.fit`.
        y: Likewise.
        **fit_arguments: Likewise.
    """
    model = learner.model
    learner.find_hyperparameters()
    fresh = clone(model)
    hand_over(model, fresh)
    copy_weights(model, fresh, trainable=False)
    if optimizer is None:
        sampler = learner.optimizer
        optimizer = type(sampler).from_config(sampler.get_config())
    optimizer = keras.optimizers.get(optimizer)
    decaying = [
        weight
        for weight in fresh.trainable_variables
        if getattr(weight.regularizer, "decays", False)
    ]
    if decaying:
        _decay_in(optimizer, decaying)
    fresh.compile(optimizer=optimizer, **learner.plain_compile_arguments())
    history = fresh.fit(x, y, **fit_arguments)
    copy_weights(fresh, model)
    return history


def _decay_in(optimizer: keras.optimizers.Optimizer, weights: list) -> None:
    """Makes an optimizer apply the learned decay of weights, as AdamW does."""
    plain = optimizer.apply

    def apply(grads: list, trainable_variables: Any = None) -> None:
        for weight in weights:  # before the step, as in Keras
            rate = keras.ops.cast(optimizer.learning_rate, weight.dtype)
            decay = weight.regularizer.decay(tf.convert_to_tensor(weight))
            weight.assign(weight - decay * rate)
        plain(grads, trainable_variables)

    optimizer.apply = apply


def hand_over(model: keras.Model, fresh: keras.Model) -> None:
    """Gives the weights of a fresh model copies of the penalties of another.

    Args:
        model: `keras.Model`, with learned regularizers on its weights.
        fresh: `keras.Model` of the same layers.
    """
    places = weight_addresses(model)
    penalties = {
        places[id(weight)]: weight.regularizer
        for weight in model.weights
        if isinstance(weight.regularizer, WeightPenalty)
    }
    find_hyperparameters(fresh)
    places = weight_addresses(fresh)
    for weight in fresh.trainable_variables:
        penalty = penalties.get(places[id(weight)])
        if penalty is None:
            continue
        copy = weight.regularizer
        if not isinstance(copy, WeightPenalty):  # attached from outside
            owner = type(penalty.owner).from_config(penalty.owner.get_config())
            copy = owner.attach(weight)
        for old, new in zip(penalty.variables, copy.variables, strict=True):
            new.assign(old)
        if penalty.center is not None:  # where training starts again
            weight.assign(penalty.center)
