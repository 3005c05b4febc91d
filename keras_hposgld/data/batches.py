"""Batches: their checks, their order, and how they are stacked."""

import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.data import padding
from keras_hposgld.data.elements import as_tuples
from keras_hposgld.data.elements import flat
from keras_hposgld.data.elements import length_of
from keras_hposgld.data.elements import packed
from keras_hposgld.data.level import Level

DEFAULT_BATCH_SIZE = 32


class BatchedData(Level):
    """Data that come in batches, of which some have been read.

    Args:
        name: What the user calls this data, for messages.
        read: List of batches, the first one first.
        inputs: See `elements.inputs_of`.
        spec: The `element_spec` of a dataset of batches, or `None`.

    Raises:
        ValueError: If the first one is something else than a batch.
    """

    def __init__(self, name, read, inputs=None, spec=None):
        self.name = name
        self.batch_size = length_of(name, read[0])
        self.shapes = padding.open_shapes(read, inputs, spec)
        self._first = read[0]

    def first_batch(self):
        return self._first

    @property
    def flat_spec(self) -> tuple:
        """The specs of the tensors of a batch."""
        return tuple(flat(self.spec))

    @property
    def varies(self) -> bool:
        """Whether batches may differ in more than their number of examples."""
        return any(map(padding.open_axes, self.shapes))

    def stacked(
        self,
        batches: tf.data.Dataset,
        num_steps: int,
        keeps_lengths: bool,
        may_end: bool = True,
    ) -> tf.data.Dataset:
        """Cuts batches anew, so that all have one size, and stacks them.

        Args:
            batches: Dataset of tuples of tensors of the shapes `self.shapes`.
            num_steps: Integer, the batches of a chain.
            keeps_lengths: As in `chains`.
            may_end: Whether the batches may come to an end, which is an error.

        Returns:
            Dataset of structures like a batch.
        """
        if self.varies:
            chains = self._stacked_with_padding(
                batches, num_steps, keeps_lengths
            )
        else:
            chains = batches.rebatch(self.batch_size, drop_remainder=True)
            chains = chains.batch(num_steps, drop_remainder=True)
        if may_end:
            chains = chains.concatenate(_error(self.end_mark(), chains))
        like = self._first

        def pack(*tensors):
            return tf.data.Dataset.from_tensors(packed(like, tensors))

        # Not `map`: tf.data would make several chains at a time.
        return chains.flat_map(pack)

    def _stacked_with_padding(self, batches, num_steps, keeps_lengths):
        shapes = self.shapes
        inner = tuple(shape[1:] for shape in shapes)
        # Of examples that were one batch, all have one length: as they were.
        batches = batches.unbatch().padded_batch(
            self.batch_size, inner, drop_remainder=True
        )
        if keeps_lengths:
            batches = batches.map(
                lambda *tensors: padding.with_lengths(tensors, shapes)
            )
        shapes = tf.nest.map_structure(
            lambda spec: spec.shape, batches.element_spec
        )
        return batches.padded_batch(num_steps, shapes, drop_remainder=True)

    def checked(self, batch: tuple) -> tuple:
        """The tensors of a batch that was read later.

        Raises:
            ValueError: If they are not like those of the first one.
        """
        tensors = flat(batch)
        if len(tensors) != len(self.shapes) or any(
            len(part.shape) != len(shape)
            or any(
                size not in (None, part.shape[axis])
                for axis, size in enumerate(shape)
            )
            for part, shape in zip(tensors, self.shapes, strict=False)
        ):
            self.fault = (
                f"The batches of `{self.name}` must be like the first one. "
                f"Received: tensors of shapes {[x.shape for x in tensors]} "
                f"after {self.shapes}. If their length is to differ, leave it "
                "open in the model: `keras.Input((None, ...))`."
            )
            raise ValueError(self.fault)
        return tuple(tensors)


def _error(text: str, like: tf.data.Dataset) -> tf.data.Dataset:
    """A dataset of elements like others, of which each is an error.

    More than one, since several replicas ask for one each.
    """

    def fail(_):
        with tf.control_dependencies([tf.debugging.Assert(False, [text])]):
            return tf.data.Dataset.from_tensors(
                tf.nest.map_structure(
                    lambda spec: tf.zeros(
                        [size or 0 for size in spec.shape], spec.dtype
                    ),
                    like.element_spec,
                )
            )

    return tf.data.Dataset.range(1).repeat().flat_map(fail)


def weakly(method: Callable) -> Callable:
    """A bound method as a function that does not keep its object alive."""
    reference: Any = weakref.WeakMethod(method)

    def call(*args):
        return reference()(*args)

    return call


def order_of_pass(length: int, shuffle: bool, seed: int, number: int):
    """The order in which pass `number` sees `length` things."""
    if not shuffle:
        return np.arange(length)
    return np.random.default_rng((seed, number)).permutation(length)


def checked_batch_size(batch_size: int | None) -> int:
    """The batch size that is meant.

    Raises:
        ValueError: If it is not an integer, or below 1.
    """
    if batch_size is None:
        return DEFAULT_BATCH_SIZE
    return check_count("batch_size", batch_size, 1)


def standardized(batch):
    """A batch of what a Python object yields, as NumPy arrays.

    Numbers that are not integers get Keras's `floatx`.
    """

    def array(leaf):
        if leaf is None or isinstance(leaf, tf.RaggedTensor | tf.SparseTensor):
            return leaf  # the latter is refused later
        leaf = keras.ops.convert_to_numpy(leaf)
        if leaf.dtype.kind == "f":
            leaf = leaf.astype(keras.config.floatx())
        return leaf

    return keras.tree.map_structure(array, as_tuples(batch))
