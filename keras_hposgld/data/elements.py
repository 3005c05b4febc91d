"""What one element of a user's data is: a batch or an example, of which parts.

A batch is a tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)` of structures
(dictionaries, tuples, named tuples) of tensors, any of which may be `None`.
"""

from typing import Any

import keras
import tensorflow as tf


def as_tuples(structure: Any) -> Any:
    """A structure with tuples for lists: what a dataset makes of it."""
    if isinstance(structure, dict):
        return {key: as_tuples(value) for key, value in structure.items()}
    if hasattr(structure, "_fields"):
        return type(structure)(*map(as_tuples, structure))
    if isinstance(structure, list | tuple):
        return tuple(as_tuples(value) for value in structure)
    return structure


def flat(structure: Any) -> list:
    """The leaves of a structure that are not `None`."""
    return [leaf for leaf in tf.nest.flatten(structure) if leaf is not None]


def packed(structure: Any, leaves: Any) -> Any:
    """A structure like another, with other leaves; `None` stays."""
    rest = iter(leaves)
    return tf.nest.map_structure(
        lambda leaf: None if leaf is None else next(rest), structure
    )


def as_batch(name: str, element: Any, needs_targets: bool = True) -> tuple:
    """An element of data as a tuple, without `None` at its end.

    Args:
        name: What the user calls these data, for messages.
        element: What a dataset, a generator or a sequence gives.
        needs_targets: Whether the model cannot do without targets.

    Raises:
        ValueError: If it is not a tuple of inputs and targets, or if a tensor
            in it is ragged or sparse.
    """
    element = tuple(element) if isinstance(element, tuple) else (element,)
    received = f"a tuple of {len(element)}"
    while element[1:] and element[-1] is None:
        element = element[:-1]
    has_targets = len(element) > 1 and element[1] is not None
    if len(element) > 3 or (needs_targets and not has_targets):
        if len(element) == 1:
            received = f"inputs of type {type(element[0]).__name__} alone"
        raise ValueError(
            f"The elements of `{name}` must be (x, y) or "
            f"(x, y, sample_weight). Received: {received}. (Only a model that "
            "is compiled without a loss, and adds its own, needs no targets.)"
        )
    for leaf in flat(element):
        if isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
            raise ValueError(
                f"The tensors of `{name}` must be dense. Received: a "
                f"{type(leaf).__name__}. Make it dense with "
                "`dataset.map(...)` and `to_tensor()` or `tf.sparse.to_dense`."
            )
    return element


def length_of(name: str, batch: tuple) -> int:
    """The number of examples of a batch.

    Raises:
        ValueError: If its tensors have no common length.
    """
    shapes = [tuple(tensor.shape) for tensor in flat(batch)]
    if () in shapes or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"`{name}` must give batches, whose tensors have one length. "
            f"Received: tensors of shapes {shapes}."
        )
    return shapes[0][0]


def inputs_of(model: keras.Model) -> Any:
    """Structure of a model's inputs, as `KerasTensor`s; `None` if unknown."""
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    # A functional model has them in the structure that its user chose.
    return getattr(model, "input", inputs)


def wanted_shapes(x: Any, inputs: Any) -> list | None:
    """The shapes that a model wants for the leaves of `x`, the batch counted.

    Args:
        x: Structure of tensors.
        inputs: See `inputs_of`.

    Returns:
        List of tuples, one for each of `flat(x)`; `None` if they are unknown.
    """
    if inputs is None:
        return None
    tensors = keras.tree.flatten(inputs)
    leaves = tf.nest.flatten(x)
    by_name = {tensor.name: tensor for tensor in tensors}
    if isinstance(x, dict) and not isinstance(inputs, dict):
        if not x.keys() <= by_name.keys():
            return None
        tensors = [by_name[key] for key in sorted(x)]
    elif isinstance(x, dict) and x.keys() != inputs.keys():
        if not x.keys() <= inputs.keys():
            return None
        tensors = keras.tree.flatten({key: inputs[key] for key in x})
    if len(tensors) != len(leaves):
        return None
    return [
        tuple(tensor.shape)
        for tensor, leaf in zip(tensors, leaves, strict=True)
        if leaf is not None
    ]


def is_batch(
    name: str,
    element: tuple,
    spec: Any,
    inputs: Any = None,
    is_declared: bool = False,
) -> bool:
    """Whether an element of a dataset is a batch, not a single example.

    Keras takes every element for a batch. Here it is an example if its tensors
    have no common length, or if only then the model can take it.

    Args:
        name: What the user calls these data, for messages.
        element: Tuple whose first entry are the inputs.
        spec: The `element_spec` of the dataset.
        inputs: See `inputs_of`.
        is_declared: Whether the user gave a size for batches of examples.

    Raises:
        ValueError: If both are possible.
    """
    shapes = [tuple(tensor.shape) for tensor in flat(element)]
    if () in shapes or len({shape[0] for shape in shapes}) != 1:
        return False
    wanted = wanted_shapes(element[0], inputs)
    if wanted is None:
        return True
    shapes = shapes[: len(wanted)]
    pairs = list(zip(shapes, wanted, strict=True))
    can_be_batch = all(
        _fits((None, *shape[1:]), want) or _fits((None, *shape[1:], 1), want)
        for shape, want in pairs
    )
    can_be_example = all(
        _fits((None, *shape), want) or _fits((None, *shape, 1), want)
        for shape, want in pairs
    )
    if can_be_batch != can_be_example:
        return can_be_batch
    if not can_be_batch:  # an error of the model will say what is wrong
        return any(len(shape) != len(want) - 1 for shape, want in pairs)
    if is_declared:
        return False
    if _has_open_length(spec) and all(len(want) == 2 for want in wanted):
        return True  # an example of (None, 1) has its length fixed
    raise ValueError(
        f"The elements of `{name}` must be either batches or single examples. "
        f"Received: inputs of shapes {shapes} for a model that takes {wanted}, "
        "which may be both. Batch the dataset with `.batch(...)`, its inputs "
        "with as many axes as those of the model."
    )


def _fits(shape, wanted):
    """Whether a model that wants one shape takes a tensor of another."""
    return tf.TensorShape(shape).is_compatible_with(wanted)


def _has_open_length(spec):
    return all(
        part.shape.rank and part.shape[0] is None
        for part in tf.nest.flatten(spec)
        if isinstance(part, tf.TensorSpec)
    )
