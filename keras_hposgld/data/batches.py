"""Batches: their checks, their order, and how they are stacked."""

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.data.level import Level

DEFAULT_BATCH_SIZE = 32


class BatchedData(Level):
    """Data that come in batches, of which one has been read.

    Args:
        name: What the user calls this data, for messages.
        first: Tuple `(x, y)` or `(x, y, sample_weight)`, the first batch.

    Raises:
        ValueError: If `first` is something else than a batch.
    """

    def __init__(self, name, first):
        check_element(name, first)
        self.name = name
        self.batch_size = length_of(name, first)
        self._first = first

    @property
    def spec(self):
        return open_spec(self._first)

    def first_batch(self):
        return self._first


def as_tuples(structure):
    """A structure with tuples for lists: what a dataset makes of it."""
    if isinstance(structure, dict):
        return {key: as_tuples(value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return tuple(as_tuples(value) for value in structure)
    return structure


def order_of_pass(length: int, shuffle: bool, seed: int, number: int):
    """The order in which pass `number` sees `length` things."""
    if not shuffle:
        return np.arange(length)
    return np.random.default_rng((seed, number)).permutation(length)


def open_spec(batch):
    """The specs of a batch, its length left open."""
    return tf.nest.map_structure(
        lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), batch
    )


def checked_batch_size(batch_size: int | None) -> int:
    """The batch size that is meant.

    Raises:
        ValueError: If it is not an integer, or below 1.
    """
    if batch_size is None:
        return DEFAULT_BATCH_SIZE
    return check_count("batch_size", batch_size, 1)


def check_element(name: str, element) -> None:
    """Checks that an element of a dataset has inputs and targets.

    Raises:
        ValueError: If it is no tuple of two or three.
    """
    if not isinstance(element, tuple) or len(element) not in (2, 3):
        raise ValueError(
            f"The elements of `{name}` must be (x, y) or "
            "(x, y, sample_weight). Received: elements of type "
            f"{type(element).__name__}."
        )


def length_of(name: str, batch) -> int:
    """The number of examples of a batch.

    Raises:
        ValueError: If its tensors have no common length.
    """
    shapes = [tuple(tensor.shape) for tensor in tf.nest.flatten(batch)]
    if () in shapes or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"`{name}` must give batches, whose tensors have one length. "
            f"Received: tensors of shapes {shapes}."
        )
    return shapes[0][0]


def stack(batches: tf.data.Dataset, batch_size, num_steps) -> tf.data.Dataset:
    """Cuts batches anew, so that all have one size, and stacks them."""
    return batches.rebatch(batch_size, drop_remainder=True).batch(
        num_steps, drop_remainder=True
    )


def standardized(batch):
    """A batch of what a Python object yields, as NumPy arrays.

    Numbers that are not integers get Keras's `floatx`.
    """

    def array(leaf):
        leaf = keras.ops.convert_to_numpy(leaf)
        if leaf.dtype.kind == "f":
            leaf = leaf.astype(keras.config.floatx())
        return leaf

    return keras.tree.map_structure(array, as_tuples(batch))
