"""Plain Keras models from learned ones."""

import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.hyperparameters.discovery import not_owned
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
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

    def plain(layer: Any) -> Any:
        if isinstance(layer, Hyperparameter):
            return layer.exported()
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer):
            config = _with_constants(layer, config)
        return type(layer).from_config(config)

    exported = clone(model, plain)
    copy_weights(model, exported)
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


def clone(
    model: keras.Model,
    function: Callable | None = None,
    adapted: Callable = lambda layer: layer,
) -> keras.Model:
    """`keras.models.clone_model`, for subclassed models as well.

    Layers that were adapted to data (`Normalization`, `TextVectorization` and
    their like) are shared with the copy: part of their state is no weight.

    Args:
        model: `keras.Model`.
        function: Function from a layer to its copy. `None` (default): one
            from the layer's config.
        adapted: Function from an adapted layer to what the copy has in its
            place. Defaults to the layer itself.
    """

    def copy(layer: Any) -> Any:
        if hasattr(layer, "adapt"):
            return adapted(layer)
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


def copy_weights(
    source: keras.Model, target: keras.Model, trainable: bool = True
) -> None:
    """Assigns the weights of a model to its copy, by their places.

    What belongs to hyperparameters is left out.

    Args:
        source: Built `keras.Model`.
        target: `keras.Model` of the same layers.
        trainable: Whether the trainable ones are copied, too.
    """
    places = weight_addresses(source)
    values = {places[id(w)]: w for w in not_owned(source.weights, source)}
    places = weight_addresses(target)
    for weight in not_owned(target.weights, target):
        old = values[places[id(weight)]]
        if trainable or not old.trainable:
            weight.assign(old)


def _with_constants(layer: keras.layers.Layer, config: dict) -> dict:
    """A layer's config, with a constant in each place of a learned penalty."""
    by_owner: dict[int, list] = {}
    for weight in layer.weights:
        regularizer = weight.regularizer
        if isinstance(regularizer, WeightPenalty):
            penalties = by_owner.setdefault(id(regularizer.owner), [])
            penalties.append(regularizer)
        elif isinstance(regularizer, WeightHyperparameter):
            # Frozen from the start: nothing was ever learned for it.
            config = _replaced(config, regularizer, None)
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


def _constant_regularizer(
    layer: keras.layers.Layer, penalties: list[WeightPenalty]
) -> dict | None:
    """The regularizer of Keras that takes the place of learned ones."""
    penalty = penalties[0]
    if len(penalties) > 1:
        _warn(layer, penalty, "Keras gives one object to several weights of it")
        return None
    try:
        constants = penalty.constants()
    except LookupError as reason:
        _warn(layer, penalty, reason.args[0])
        return None
    return keras.regularizers.serialize(keras.regularizers.L1L2(**constants))


def _warn(
    layer: keras.layers.Layer, penalty: WeightPenalty, reason: str
) -> None:
    warnings.warn(
        f"The exported layer {layer.name!r} has no regularizer in place of "
        f"{penalty.owner.name!r} on {penalty.path!r}: {reason}.",
        stacklevel=2,
    )


def _is_config_of(value: Any, owner: WeightHyperparameter) -> bool:
    return (
        isinstance(value, dict)
        and value.get("class_name") == type(owner).__name__
        and value.get("config", {}).get("name") == owner.name
    )


def _find(config: Any, owner: WeightHyperparameter) -> bool:
    if _is_config_of(config, owner):
        return True
    if isinstance(config, dict):
        return any(_find(value, owner) for value in config.values())
    if isinstance(config, list | tuple):
        return any(_find(value, owner) for value in config)
    return False


def _replaced(config: Any, owner: WeightHyperparameter, constant: Any) -> Any:
    if _is_config_of(config, owner):
        return constant
    if isinstance(config, dict):
        return {k: _replaced(v, owner, constant) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(_replaced(v, owner, constant) for v in config)
    return config


def _empty_place(weight_name: str, config: dict) -> str | None:
    """The config key of a weight's regularizer, where it holds none."""
    stem = weight_name.removesuffix("_kernel")
    for name in (weight_name, stem, "depthwise"):
        key = f"{name}_regularizer"
        if key in config and config[key] is None:
            return key
    return None
