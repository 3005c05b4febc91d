"""Which weights see the inputs of a model."""

from typing import Any

import keras

from keras_hposgld.hyperparameters.addresses import all_layers

# What turns the outputs of a linear model into those of its likelihood.
LINEAR = (
    keras.activations.linear,
    keras.activations.softmax,
    keras.activations.sigmoid,
)


def first_weights(model: keras.Model) -> list[keras.Variable]:
    """The trainable weights with no other one between them and the inputs.

    Args:
        model: Built `keras.Model`. Of a subclassed one, whose layers are called
            nobody knows how, the first layer with weights counts.
    """
    if isinstance(model, keras.Sequential):
        return _of_first(model.layers)
    if not hasattr(model, "operations"):  # no graph of layers
        return _of_first(all_layers(model)[1:])
    found: dict[int, keras.Variable] = {}
    for layer in model.layers:
        weights = _weights_of(layer)
        if weights and not any(map(_weights_of, _before(layer))):
            found |= {id(weight): weight for weight in weights}
    return list(found.values())


def is_one_linear_layer(model: keras.Model) -> bool:
    """Whether the model's weights are those of one `Dense` layer, its last."""
    trainable = {id(weight) for weight in model.trainable_variables}
    layers = getattr(model, "layers", [])
    last: Any = layers[-1] if layers else None
    return (
        type(last) is keras.layers.Dense
        and last.activation in LINEAR
        and {id(weight) for weight in last.trainable_variables} == trainable
    )


def _of_first(layers: list) -> list[keras.Variable]:
    for layer in layers:
        if _weights_of(layer):
            return _weights_of(layer)
    return []


def _weights_of(layer: Any) -> list[keras.Variable]:
    if isinstance(layer, keras.Model):
        return first_weights(layer)
    return list(layer.trainable_variables)


def _before(layer: keras.layers.Layer) -> list:
    """All layers whose outputs come to a layer."""
    # Private to Keras, which has no public way along the graph of a model.
    seen: dict[int, Any] = {}
    waiting = [layer]
    while waiting:
        for node in waiting.pop()._inbound_nodes:
            for parent in node.parent_nodes:
                operation = parent.operation
                if id(operation) not in seen:
                    seen[id(operation)] = operation
                    waiting.append(operation)
    return [x for x in seen.values() if isinstance(x, keras.layers.Layer)]
