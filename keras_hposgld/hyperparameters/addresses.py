"""Where a weight stands in a model: the identity that a file can keep.

Names change: Keras numbers layers as they are made, and paths are others
after loading. Order changes: weights are frozen, and LoRA adds some. What stays
is the place of a layer in its model, and the name that the layer gives its
weight. A place is written as Keras writes it in its files: by attribute, and by
class and number within a list of layers, such as `layers/dense_1/kernel`.
"""

import re
from collections.abc import Iterator
from typing import Any

import keras


def weight_addresses(model: keras.Model) -> dict[int, str]:
    """The addresses of all weights of a model.

    Args:
        model: Built `keras.Model`. A layer that it holds in two places counts
            in the first of them.

    Returns:
        Dictionary from `id(weight)` to its address.
    """
    addresses: dict[int, str] = {}
    seen = set()

    def visit(layer, place):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        for name, child in _children(layer):
            visit(child, f"{place}{name}/")
        used: dict[str, int] = {}
        for weight in layer.weights:
            if id(weight) not in addresses:  # else it is of a layer within
                # Keras numbers those without a name in the order of making.
                is_unnamed = re.fullmatch(r"variable(_\d+)?", weight.name)
                name = "variable" if is_unnamed else weight.name
                name = _numbered(name, used)
                addresses[id(weight)] = f"{place}{name}"

    visit(model, "")
    return addresses


def is_within(address: str, other: str) -> bool:
    """Whether one address is the end of the other.

    It is where a model has become a layer of another one, or the other way.
    """
    shorter, longer = sorted((address, other), key=len)
    return longer == shorter or longer.endswith(f"/{shorter}")


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model, itself first, the nested ones, too."""
    # Private to Keras, whose `layers` leaves out the layers within a layer.
    return model._flatten_layers()


def replace(model: keras.Model, old, new) -> None:
    """Puts a layer in the place of another, wherever a model holds it.

    Keras lets nobody add a layer to one that is built, and has no public name
    for an exchange.

    Args:
        model: `keras.Model`.
        old: `keras.layers.Layer`.
        new: `keras.layers.Layer` that computes the same.
    """
    for holder in all_layers(model):
        if not any(child is old for child in holder._layers):
            continue
        holder._tracker.replace_tracked_value("layers", old, new)
        for name, value in list(vars(holder).items()):
            if value is old:
                setattr(holder, name, new)
            elif isinstance(value, dict):
                for key in [k for k, v in value.items() if v is old]:
                    value[key] = new
            elif isinstance(value, list):
                for position, part in enumerate(value):
                    if part is old:
                        value[position] = new


def _children(layer) -> Iterator[tuple[str, Any]]:
    """The layers directly within one, by their places."""
    if isinstance(layer, keras.Sequential) or hasattr(layer, "operations"):
        yield from _in_container("layers", layer.layers, {})
    # Private ones last, as in Keras; TensorFlow's own begin with `_self_`.
    names = vars(layer).keys() - _KERAS_ATTRIBUTES
    for name in sorted(names, key=lambda name: (name[0] == "_", name)):
        value = None if name.startswith("_self_") else vars(layer)[name]
        if isinstance(value, keras.layers.Layer):
            yield name, value
        elif isinstance(value, list | tuple | dict):
            yield from _in_container(name, value, {})


def _in_container(name, container, used):
    parts = container.values() if isinstance(container, dict) else container
    for part in parts:
        if isinstance(part, keras.layers.Layer):
            class_name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(part).__name__)
            yield f"{name}/{_numbered(class_name.lower(), used)}", part
        elif isinstance(part, list | tuple | dict):
            yield from _in_container(name, part, used)


def _numbered(name: str, used: dict[str, int]) -> str:
    """A name, with a number if it was used before."""
    number = used.get(name, 0)
    used[name] = number + 1
    return f"{name}_{number}" if number else name


# What Keras keeps for itself: the attributes of a model that holds nothing.
_KERAS_ATTRIBUTES = vars(keras.Sequential()).keys() | vars(keras.Model()).keys()
