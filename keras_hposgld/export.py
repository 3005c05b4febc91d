"""Plain Keras models made from learned ones."""

import warnings

import keras
import numpy as np

from keras_hposgld.hyperparameters.weight_penalty import WeightPenalty


def export_model(model: keras.Model) -> keras.Model:
    """Copies a model with Keras's own regularizers in place of learned ones.

    Keras's regularizers take one number. A learned strength per tensor is that
    number. Finer strengths are replaced by the number with which the penalty
    of the weight, as it is now, stays the same.

    Args:
        model: Built Sequential or Functional `keras.Model`, or a subclass with
            `get_config`.

    Returns:
        `keras.Model` with the same weights, predictions and losses.
    """

    def plain(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):
            for key, penalties in _regularizer_entries(layer, config).items():
                config[key] = _constant_regularizer(layer, penalties)
        return type(layer).from_config(config)

    exported = clone(model, plain)
    copy_weights(model.weights, exported.weights)
    return exported


def clone(model: keras.Model, function=None) -> keras.Model:
    """`keras.models.clone_model`, for subclassed models as well."""
    if isinstance(model, keras.Sequential) or hasattr(model, "operations"):
        return keras.models.clone_model(
            model, clone_function=function, recursive=function is not None
        )
    if function is None:
        copy = type(model).from_config(model.get_config())
    else:
        copy = function(model)
    copy.build_from_config(model.get_build_config())
    return copy


def copy_weights(source: list, target: list) -> None:
    """Assigns weights pairwise; those of learned regularizers left out."""

    def own(weights):
        strengths = {
            id(variable)
            for weight in weights
            if isinstance(weight.regularizer, WeightPenalty)
            for variable in weight.regularizer.owner.variables
        }
        return [weight for weight in weights if id(weight) not in strengths]

    for old, new in zip(own(source), own(target), strict=True):
        new.assign(old)


def _constant_regularizer(layer, penalties: list[WeightPenalty]):
    """The regularizer of Keras that takes the place of learned ones."""
    owner = penalties[0].owner
    if len(penalties) > 1 or owner.center is not None:
        reason = (
            "Keras gives one object to several weights of it"
            if owner.center is None
            else "Keras has none that pulls to the initial weights"
        )
        warnings.warn(
            f"The exported layer {layer.name!r} has no regularizer in place "
            f"of {owner.name!r}: {reason}.",
            stacklevel=2,
        )
        return None
    (penalty,) = penalties
    weight = penalty.weight.numpy()
    constants = {}
    for power, value in penalty.strength_values().items():
        size = np.abs(weight) if power == "l1" else weight**2
        total = size.sum()
        constants[power] = float(
            (value * size).sum() / total if total > 0 else value.mean()
        )
    return keras.regularizers.L1L2(**constants)


def _regularizer_entries(layer, config):
    """Config keys of learned regularizers, each with its penalties."""
    entries = {}
    for weight in layer.weights:
        penalty = weight.regularizer
        if not isinstance(penalty, WeightPenalty):
            continue
        keys = [k for k, v in config.items() if _names(v, penalty.owner)]
        if not keys and f"{weight.name}_regularizer" in config:
            # Attached from outside: the config has an empty place for it.
            keys = [f"{weight.name}_regularizer"]
        for key in keys[:1]:
            entries.setdefault(key, []).append(penalty)
    return entries


def _names(value, owner):
    return (
        isinstance(value, dict)
        and value.get("class_name") == type(owner).__name__
        and value.get("config", {}).get("name") == owner.name
    )


def refit(learner, optimizer, x, y, **fit_arguments):
    """Trains fresh weights under learned strengths; see `BilevelModel.refit`.

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
    config = keras.Model.get_compile_config(learner)
    arguments = keras.saving.deserialize_keras_object(config)
    arguments["optimizer"] = optimizer or arguments["optimizer"]
    fresh.compile(**arguments)
    history = fresh.fit(x, y, **fit_arguments)
    copy_weights(fresh.weights, model.weights)
    return history


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
