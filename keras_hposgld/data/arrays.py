"""Batches from arrays, in an order that needs no state.

They are drawn without replacement, pass after pass, in an order that is a
function of a seed and of the number of the outer iteration alone: training
that goes on after a break draws what it would have drawn. A batch may hold the
last examples of one pass and the first of the next, so all have one size.
"""

import itertools
import math

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data import padding
from keras_hposgld.data.batches import checked_batch_size
from keras_hposgld.data.batches import order_of_pass
from keras_hposgld.data.elements import as_batch
from keras_hposgld.data.elements import as_tuples
from keras_hposgld.data.elements import flat
from keras_hposgld.data.elements import packed
from keras_hposgld.data.level import first_rows
from keras_hposgld.data.level import Level


class ArrayData(Level):
    """Examples of one level, held as tensors.

    Args:
        name: What the user calls this data, for messages.
        examples: Tuple `(x,)`, `(x, y)` or `(x, y, sample_weight)` of
            structures of arrays with one length, or of `None`.
        batch_size: Integer or `None` for 32; a batch is never larger than the
            data.
        shuffle: Whether the order changes from pass to pass.
        seed: Integer.
        inputs: See `elements.inputs_of`.

    Raises:
        ValueError: If there are no examples, or the lengths differ.
    """

    def __init__(
        self, name, examples, batch_size, shuffle=True, seed=0, inputs=None
    ):
        self.name = name
        examples = keras.tree.map_structure(_as_tensor, examples)
        self.examples = as_batch(name, as_tuples(examples), needs_targets=False)
        lengths = {int(tensor.shape[0]) for tensor in flat(self.examples)}
        if len(lengths) != 1:
            raise ValueError(
                f"The arrays of `{name}` must have one length. "
                f"Received: arrays of {sorted(lengths)} examples."
            )
        self.num_examples = lengths.pop()
        if self.num_examples == 0:
            raise ValueError(
                f"`{name}` must hold at least one example. "
                "Received: arrays of length 0."
            )
        self.batch_size = min(checked_batch_size(batch_size), self.num_examples)
        self.shuffle = shuffle
        self.seed = seed
        self.shapes = padding.open_shapes([self.examples], inputs)

    @property
    def batches_per_pass(self) -> float:
        return self.num_examples / self.batch_size

    def whole(self):
        return self.examples

    def join(self):
        self.batch_size = self.num_examples

    def chains(self, num_steps, first=lambda: 0, keeps_lengths=True):
        # Drawn by the number of the chain: `first()`, `first() + 1`, ...
        del keeps_lengths  # all batches have one length
        if self.num_stacked(num_steps) < num_steps:
            stack = [tensor[None] for tensor in flat(self.examples)]
            return tf.data.Dataset.from_tensors(
                packed(self.examples, stack)
            ).repeat()
        shape = (num_steps, self.batch_size)
        order = (self.num_examples, self.shuffle, self.seed)

        def draw():  # which TensorFlow keeps for ever, but not the data
            for chain in itertools.count(first()):
                yield drawn_indices(chain, shape, order)

        indices = tf.data.Dataset.from_generator(
            draw, output_signature=tf.TensorSpec(shape, tf.int64)
        )
        return examples_at(indices, self)

    def num_stacked(self, num_steps):
        # Batches of all examples differ in their order alone.
        is_whole = self.batch_size == self.num_examples
        return 1 if is_whole else num_steps

    def first_batch(self):
        return first_rows(self.examples, self.batch_size)

    def some_examples(self, number):
        if number >= self.num_examples:
            return self.examples
        # From all of them: the first ones may be those of one class.
        rows = order_of_pass(self.num_examples, True, self.seed, 0)[:number]
        return tf.nest.map_structure(
            lambda x: None if x is None else tf.gather(x, rows), self.examples
        )


def examples_at(
    positions: tf.data.Dataset, data: ArrayData, rows: list | tuple = ()
) -> tf.data.Dataset:
    """The examples at drawn positions, in the structure of the data.

    Args:
        positions: Dataset of integer tensors.
        data: `ArrayData`.
        rows: List of integer arrays, one for each entry of the leading axis of
            a tensor of positions: which examples those are positions in. Empty
            (default): in all of them.
    """
    # As elements: what a function captures, TensorFlow frees late.
    held = tf.data.Dataset.from_tensors(
        (tuple(rows), tuple(flat(data.examples)))
    )
    like = packed(data.examples, map(str, data.shapes))

    def chain(position, held):
        rows, tensors = held
        if rows:
            position = tf.stack(
                [tf.gather(row, position[j]) for j, row in enumerate(rows)]
            )
        drawn = [tf.gather(tensor, position) for tensor in tensors]
        return tf.data.Dataset.from_tensors(packed(like, drawn))

    # Not `map`: tf.data would make several chains at a time.
    return tf.data.Dataset.zip((positions, held.repeat())).flat_map(chain)


def drawn_indices(chain: int, shape: tuple, order: tuple) -> np.ndarray:
    """The indices of the examples of one chain.

    Args:
        chain: Integer, the number of the chain.
        shape: The number of batches in a chain, and of examples in a batch.
        order: The number of examples, whether they are shuffled, the seed.

    Returns:
        Integer array of that shape.
    """
    length, shuffle, seed = order
    missing = math.prod(shape)
    position = chain * missing
    drawn = []
    while missing:
        number, offset = divmod(position, length)
        pass_order = order_of_pass(length, shuffle, seed, number)
        part = pass_order[offset : offset + missing]
        drawn.append(part)
        position += len(part)
        missing -= len(part)
    return np.concatenate(drawn).reshape(shape)


def as_arrays(structure):
    """A structure with NumPy arrays for what pandas holds."""
    return keras.tree.map_structure(
        lambda leaf: leaf.to_numpy() if hasattr(leaf, "to_numpy") else leaf,
        structure,
    )


def _as_tensor(array):
    if array is None or isinstance(array, tf.RaggedTensor | tf.SparseTensor):
        return array  # the latter is refused later
    tensor = tf.convert_to_tensor(array)
    if tensor.dtype.is_floating:
        tensor = tf.cast(tensor, keras.config.floatx())
    return tensor
