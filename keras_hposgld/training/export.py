"""Plain Keras models from learned ones, and plain training of learned ones."""

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.hyperparameters.discovery import not_owned
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.regularizers.weight_penalty import WeightPenalty


def export_model(model: keras.Model) -> keras.Model:
    """Copies a model with Keras's own regularizers in place of learned ones.

    Keras's regularizers take one number. A learned strength per tensor is that
    number. Finer strengths are replaced by the number with which the penalty
    of the weight, as it is now, stays the same. What Keras has no place for is
    left out, with a warning.

    Args:
        model: Built Sequential or Functional `keras.Model`, or a subclass with
            `get_config`.

    Returns:
        `keras.Model` with the same weights and predictions.

    Raises:
        ValueError: If a layer of the user's own makes a learned regularizer
            that its config does not show.
    """

    def plain(layer):
        if isinstance(layer, Hyperparameter):
            # An augmentation, which does nothing in inference.
            return keras.layers.Identity(name=layer.name)
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):
            config = _with_constants(layer, config)
        return type(layer).from_config(config)

    exported = clone(model, plain)
    copy_weights(not_owned(model.weights, model), exported.weights)
    for weight in exported.weights:
        if isinstance(weight.regularizer, Hyperparameter | WeightPenalty):
            raise ValueError(
                "The model cannot be exported: a layer makes a learned "
                "regularizer that its `get_config` does not show. Received: "
                f"weight {weight.path!r}. Pass the regularizer to the layer "
                "as an argument, and return it from `get_config`."
            )
    return exported


def exported(
    model: keras.Model, filepath: Any = None, **export_arguments: Any
) -> keras.Model:
    """The plain model, which Keras writes for serving where a path is given.

    Args:
        model: As in `export_model`.
        filepath: Path or string, or `None`.
        **export_arguments: Passed to `keras.Model.export`.

    Raises:
        ValueError: As `export_model`.
    """
    plain = export_model(model)
    if filepath is not None:
        plain.export(filepath, **export_arguments)
    return plain


def clone(model: keras.Model, function=None) -> keras.Model:
    """`keras.models.clone_model`, for subclassed models as well.

    Layers that were adapted to data (`Normalization`, `TextVectorization` and
    their like) are shared with the copy: part of their state is no weight.

    Args:
        model: `keras.Model`.
        function: Function from a layer to its copy. `None` (default): one
            from the layer's config.
    """

    def copy(layer):
        if hasattr(layer, "adapt"):
            return layer
        if function is not None:
            return function(layer)
        return type(layer).from_config(layer.get_config())

    # A class with a config of its own, as all of KerasHub's, is made from that:
    # its layers may not be.
    is_graph = isinstance(model, keras.Sequential) or hasattr(
        model, "operations"
    )
    has_own_config = not type(model).get_config.__module__.startswith("keras.")
    if is_graph and not has_own_config:
        return keras.models.clone_model(
            model, clone_function=copy, recursive=True
        )
    result = copy(model)
    if not result.built:
        result.build_from_config(model.get_build_config())
    return result


def copy_weights(source: list, target: list, trainable: bool = True) -> None:
    """Assigns weights pairwise; those of learned regularizers left out.

    Args:
        source: List of variables.
        target: List of variables.
        trainable: Whether the trainable ones are copied, too.
    """

    def own(weights):
        strengths = {
            id(variable)
            for weight in weights
            if isinstance(weight.regularizer, WeightPenalty)
            for variable in weight.regularizer.owner.variables
        }
        return [weight for weight in weights if id(weight) not in strengths]

    for old, new in zip(own(source), own(target), strict=True):
        if trainable or not old.trainable:
            new.assign(old)


def _with_constants(layer, config):
    """A layer's config, with a constant in each place of a learned penalty."""
    by_owner = {}
    for weight in layer.weights:
        penalty = weight.regularizer
        if isinstance(penalty, WeightPenalty):
            by_owner.setdefault(id(penalty.owner), []).append(penalty)
    for penalties in by_owner.values():
        owner = penalties[0].owner
        if _find(config, owner):
            # One place, which Keras may hand to several weights.
            constant = _constant_regularizer(layer, penalties)
            config = _replaced(config, owner, constant)
            continue
        for penalty in penalties:  # attached from outside
            place = _empty_place(penalty.weight.name, config)
            if place is None:
                _warn(layer, penalty, "its config has no place for one")
            else:
                config[place] = _constant_regularizer(layer, [penalty])
    return config


def _constant_regularizer(layer, penalties: list[WeightPenalty]):
    """The regularizer of Keras that takes the place of learned ones."""
    penalty = penalties[0]
    if len(penalties) > 1:
        return _warn(
            layer, penalty, "Keras gives one object to several weights of it"
        )
    if penalty.center is not None:
        return _warn(
            layer, penalty, "Keras has none that pulls to the initial weights"
        )
    if penalty.decays:
        return _warn(
            layer, penalty, "Keras has weight decay in the optimizer alone"
        )
    weight = penalty.weight.numpy()
    constants = {}
    for power, value in penalty.strength_values().items():
        size = np.abs(weight) if power == "l1" else weight**2
        total = size.sum()
        constants[power] = float(
            (value * size).sum() / total if total > 0 else value.mean()
        )
    return keras.regularizers.serialize(keras.regularizers.L1L2(**constants))


def _warn(layer, penalty, reason):
    warnings.warn(
        f"The exported layer {layer.name!r} has no regularizer in place of "
        f"{penalty.owner.name!r} on {penalty.path!r}: {reason}.",
        stacklevel=2,
    )


def _is_config_of(value, owner):
    return (
        isinstance(value, dict)
        and value.get("class_name") == type(owner).__name__
        and value.get("config", {}).get("name") == owner.name
    )


def _find(config, owner):
    if _is_config_of(config, owner):
        return True
    if isinstance(config, dict):
        return any(_find(value, owner) for value in config.values())
    if isinstance(config, list | tuple):
        return any(_find(value, owner) for value in config)
    return False


def _replaced(config, owner, constant):
    if _is_config_of(config, owner):
        return constant
    if isinstance(config, dict):
        return {k: _replaced(v, owner, constant) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_replaced(v, owner, constant) for v in config)
    return config


def _empty_place(weight_name, config):
    """The config key of a weight's regularizer, where it holds none."""
    stem = weight_name.removesuffix("_kernel")
    for name in (weight_name, stem, "depthwise"):
        key = f"{name}_regularizer"
        if key in config and config[key] is None:
            return key
    return None


def refit(learner, optimizer, x, y, **fit_arguments):
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
    fresh = clone(model)
    for old, new in zip(
        model.trainable_variables, fresh.trainable_variables, strict=True
    ):
        if isinstance(old.regularizer, WeightPenalty):
            _hand_over(old.regularizer, new)
    copy_weights(model.weights, fresh.weights, trainable=False)
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
    copy_weights(fresh.weights, model.weights)
    return history


def _decay_in(optimizer, weights: list) -> None:
    """Makes an optimizer apply the learned decay of weights, as AdamW does."""
    plain = optimizer.apply

    def apply(grads, trainable_variables=None):
        for weight in weights:  # before the step, as in Keras
            rate = keras.ops.cast(optimizer.learning_rate, weight.dtype)
            decay = weight.regularizer.decay(tf.convert_to_tensor(weight))
            weight.assign(weight - decay * rate)
        plain(grads, trainable_variables)

    optimizer.apply = apply


def _hand_over(penalty: WeightPenalty, weight: keras.Variable) -> None:
    """Gives a fresh weight a copy of the penalty of another."""
    owner = getattr(weight.regularizer, "owner", weight.regularizer)
    if owner is None:  # attached from outside
        owner = type(penalty.owner).from_config(penalty.owner.get_config())
    copy = owner.attach(weight)
    for power, variable in penalty.strengths.items():
        copy.strengths[power].assign(variable)
    if penalty.center is not None:
        copy.center.assign(penalty.center)
        weight.assign(penalty.center)
