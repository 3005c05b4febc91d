"""Batches of different length, such as sentences, on one axis.

Keras feeds each batch at its own length. The batches of a chain lie in one
tensor, so the shorter ones are filled up with zeros at the end of an axis, and
cut back to their own length before the model sees them. Zeros are seen only by
a batch that is itself put together from batches of different length.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.data.elements import flat
from keras_hposgld.data.elements import wanted_shapes


class Padded(NamedTuple):
    """Tensors of different length, filled up with zeros.

    Attributes:
        values: Tensor `(num_steps, batch_size, ...)`.
        lengths: Dictionary from an axis of a batch, above 0, to the length of
            each example there: integers `(num_steps, batch_size)`.
    """

    values: tf.Tensor
    lengths: dict[int, tf.Tensor]


def unpadded(batch: Any) -> Any:
    """A batch at its own length: of each `Padded`, what is not padding."""
    if isinstance(batch, Padded):
        return _cut(*batch)
    if isinstance(batch, dict):
        return {key: unpadded(value) for key, value in batch.items()}
    if hasattr(batch, "_fields"):
        return type(batch)(*map(unpadded, batch))
    if isinstance(batch, tuple):
        return tuple(unpadded(value) for value in batch)
    return batch


def _cut(values, lengths):
    for axis, length in lengths.items():
        rows = [slice(None)] * axis
        values = values[(*rows, slice(tf.reduce_max(length)))]
    return values


def with_lengths(tensors: tuple, shapes: list) -> tuple:
    """Writes down the length that each example of a batch has now.

    Args:
        tensors: The tensors of a batch.
        shapes: Their shapes, of which `None` is what differs.

    Returns:
        A `Padded` for each tensor that differs in shape, else the tensor.
    """

    def one(tensor, shape):
        axes = open_axes(shape)
        if not axes:
            return tensor
        size = tf.shape(tensor)
        lengths = {axis: tf.fill(size[:1], size[axis]) for axis in axes}
        return Padded(tensor, lengths)

    return tuple(map(one, tensors, shapes))


def open_axes(shape: tuple) -> list[int]:
    """The axes of a batch on which batches differ, the first not counted."""
    return [n for n, size in enumerate(shape) if n > 0 and size is None]


def open_shapes(
    batches: list[tuple], inputs: Any = None, spec: Any = None
) -> list[tuple]:
    """The shapes of all batches, with `None` where they may differ.

    An axis of an input may differ if the data or the model leave it open, or
    if it was seen to. One of a target or weight may if the data leave it open,
    if it was seen to, or if it has always been as long as such an axis of an
    input.

    Args:
        batches: Batches that were read, at least one.
        inputs: See `elements.inputs_of`.
        spec: The `element_spec` of a dataset of batches, or `None`.

    Returns:
        List of tuples, one for each of `flat(batches[0])`.
    """
    seen = [[tuple(part.shape) for part in flat(batch)] for batch in batches]
    specs: list = [None] * len(seen[0])
    if spec is not None:
        # `None` of the batch is in the spec, too, and not a leaf of it.
        kept = [
            p for p in tf.nest.flatten(spec) if isinstance(p, tf.TensorSpec)
        ]
        specs = [
            tuple(part.shape) if part.shape.rank is not None else None
            for part in kept
        ]
    number = len(flat(batches[0][0]))
    wanted = wanted_shapes(batches[0][0], inputs) or [None] * number
    shapes = [
        _input_shape([shapes[n] for shapes in seen], specs[n], wanted[n])
        for n in range(number)
    ]
    open_lengths = [
        {
            sizes[n][axis]
            for n, shape in enumerate(shapes)
            for axis in open_axes(shape)
        }
        for sizes in seen
    ]
    for n in range(number, len(seen[0])):
        sizes = [shapes[n] for shapes in seen]
        shapes.append(_target_shape(sizes, specs[n], open_lengths))
    return shapes


def _input_shape(seen, spec, wanted):
    first = seen[0]
    shape = list(spec) if spec is not None else list(first)
    shape[0] = None
    is_known = wanted is not None and len(wanted) == len(first)
    for axis in range(1, len(first)):
        if is_known and wanted[axis] is not None:
            shape[axis] = first[axis]
        elif spec is None and (is_known or _differ(seen, axis)):
            shape[axis] = None
    return tuple(shape)


def _target_shape(seen, spec, open_lengths):
    first = seen[0]
    shape = list(first)
    shape[0] = None
    for axis in range(1, len(first)):
        follows = all(
            sizes[axis] in lengths
            for sizes, lengths in zip(seen, open_lengths, strict=True)
        )
        is_open = follows if spec is None else spec[axis] is None
        if (is_open and any(open_lengths)) or _differ(seen, axis):
            shape[axis] = None
    return tuple(shape)


def _differ(seen, axis):
    return len({sizes[axis] for sizes in seen}) > 1
