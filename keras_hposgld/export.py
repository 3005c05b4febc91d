"""Plain Keras models made from learned ones.

A learned strength per weight fits none of Keras's regularizers, which take one
number. But Keras accepts any callable layer as a regularizer, a small Keras
model among them: built from Keras's own layers, it holds the strengths as
weights that are not trained, and loads where this package is not installed.
"""

import math
import warnings

import keras

from keras_hposgld.hyperparameters.regularizers import LearnableRegularizer
from keras_hposgld.hyperparameters.regularizers import WeightPenalty


def export_model(model: keras.Model) -> keras.Model:
    """Copies a model with its learned regularizers made constant.

    Args:
        model: Built Sequential or Functional `keras.Model`, or a subclass with
            `get_config`.

    Returns:
        `keras.Model` of the same weights, predictions and regularization.
    """
    constants = []

    def plain(layer):
        config = layer.get_config()
        for key, penalties in _regularizer_entries(layer, config).items():
            if len(penalties) > 1:
                warnings.warn(
                    f"The exported layer {layer.name!r} has no regularizer "
                    f"in place of {key!r}: Keras gives one object to "
                    f"{len(penalties)} weights of it, and a constant one "
                    "cannot tell them apart.",
                    stacklevel=2,
                )
                config[key] = None
                continue
            config[key] = constant_regularizer(penalties[0])
            if isinstance(config[key], keras.Model):
                constants.append(config[key])
        return type(layer).from_config(config)

    exported = clone(model, plain)
    added = {id(w) for constant in constants for w in constant.weights}
    copy_weights(model.weights, exported.weights, added)
    return exported


def clone(model: keras.Model, function=None) -> keras.Model:
    """`keras.models.clone_model`, for subclassed models as well."""
    if isinstance(model, keras.Sequential) or hasattr(model, "operations"):
        return keras.models.clone_model(model, clone_function=function)
    if function is None:
        copy = type(model).from_config(model.get_config())
    else:
        copy = function(model)
    copy.build_from_config(model.get_build_config())
    return copy


def copy_weights(source: list, target: list, added=frozenset()) -> None:
    """Assigns weights pairwise; hyperparameters and `added` ids left out."""

    def own(weights):
        strengths = {
            id(variable)
            for weight in weights
            if isinstance(weight.regularizer, WeightPenalty)
            for variable in weight.regularizer.owner.variables
        }
        return [w for w in weights if id(w) not in strengths | added]

    for old, new in zip(own(source), own(target), strict=True):
        new.assign(old)


def constant_regularizer(penalty: WeightPenalty):
    """A regularizer of Keras's own parts with the strengths of a penalty.

    Args:
        penalty: `WeightPenalty`.

    Returns:
        `keras.regularizers.L1L2` where one number is enough, else a
        `keras.Model` from the weight to the scalar penalty.
    """
    owner = penalty.owner
    strengths = {
        power: owner.constrain(variable).numpy()
        for power, variable in penalty.strengths.items()
    }
    if owner.granularity == "tensor" and penalty.center is None:
        return keras.regularizers.L1L2(
            **{power: float(value) for power, value in strengths.items()}
        )
    weight = keras.Input(batch_shape=penalty.shape, dtype="float32")
    deviation = weight
    if penalty.center is not None:
        index = keras.ops.sum(keras.ops.zeros_like(weight))
        index = keras.ops.cast(keras.ops.reshape(index, (1,)), "int32")
        center = keras.layers.Embedding(
            1, math.prod(penalty.shape), dtype="float32", name="center"
        )
        value = keras.ops.reshape(center(index), penalty.shape)
        deviation = keras.ops.subtract(weight, value)
    shared = [
        axis
        for axis, size in enumerate(owner.aligned(penalty.shape))
        if size != penalty.shape[axis]
    ]
    terms = []
    for power in strengths:
        size = keras.ops.abs(deviation)
        if power == "l2":
            size = keras.ops.square(deviation)
        if shared:
            size = keras.ops.sum(size, axis=shared)
        weighted = keras.layers.Dense(
            1, use_bias=False, dtype="float32", name=power
        )
        terms.append(weighted(keras.ops.reshape(size, (1, -1))))
    model = keras.Model(weight, keras.ops.sum(keras.ops.stack(terms)))
    for power, value in strengths.items():
        model.get_layer(power).kernel.assign(value.reshape(-1, 1))
    if penalty.center is not None:
        model.get_layer("center").embeddings.assign(
            penalty.center.numpy().reshape(1, -1)
        )
    model.trainable = False
    return model


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


def _names(value, owner: LearnableRegularizer):
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
