"""Batches from arrays, in an order that needs no state.

They are drawn without replacement, pass after pass, in an order that is a
function of a seed and of the number of the outer iteration alone: training
that goes on after a break draws what it would have drawn. A batch may hold the
last examples of one pass and the first of the next, so all have one size.
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data.batches import as_tuples
from keras_hposgld.data.batches import checked_batch_size
from keras_hposgld.data.batches import open_spec
from keras_hposgld.data.batches import order_of_pass
from keras_hposgld.data.level import Level


class ArrayData(Level):
    """Examples of one level, held as tensors.

    Args:
        name: What the user calls this data, for messages.
        examples: Tuple `(x, y)` or `(x, y, sample_weight)` of structures of
            arrays with one length.
        batch_size: Integer or `None` for 32; a batch is never larger than the
            data.
        shuffle: Whether the order changes from pass to pass.
        seed: Integer.

    Raises:
        ValueError: If there are no examples, or the lengths differ.
    """

    def __init__(self, name, examples, batch_size, shuffle=True, seed=0):
        self.name = name
        self.examples = as_tuples(
            keras.tree.map_structure(_as_tensor, examples)
        )
        lengths = {
            int(tensor.shape[0]) for tensor in tf.nest.flatten(self.examples)
        }
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

    @property
    def batches_per_pass(self) -> float:
        return self.num_examples / self.batch_size

    @property
    def spec(self):
        return open_spec(self.examples)

    def first_batch(self):
        return tf.nest.map_structure(
            lambda x: x[: self.batch_size], self.examples
        )

    def chains(self, num_steps, first=lambda: 0):
        # Drawn by the number of the chain: `first()`, `first() + 1`, ...

        def draw():
            for chain in itertools.count(first()):
                yield self._indices(chain * num_steps, num_steps)

        indices = tf.data.Dataset.from_generator(
            draw,
            output_signature=tf.TensorSpec(
                (num_steps, self.batch_size), tf.int64
            ),
        )

        def chain(index):
            return tf.data.Dataset.from_tensors(
                tf.nest.map_structure(
                    lambda x: tf.gather(x, index), self.examples
                )
            )

        # Not `map`: tf.data would make several chains at a time.
        return indices.flat_map(chain)

    def _indices(self, first_batch, num_batches):
        position = first_batch * self.batch_size
        missing = num_batches * self.batch_size
        drawn = []
        while missing:
            number, offset = divmod(position, self.num_examples)
            order = order_of_pass(
                self.num_examples, self.shuffle, self.seed, number
            )
            part = order[offset : offset + missing]
            drawn.append(part)
            position += len(part)
            missing -= len(part)
        return np.concatenate(drawn).reshape(num_batches, self.batch_size)


def as_arrays(structure):
    """A structure with NumPy arrays for what pandas holds."""
    return keras.tree.map_structure(
        lambda leaf: leaf.to_numpy() if hasattr(leaf, "to_numpy") else leaf,
        structure,
    )


def _as_tensor(array):
    tensor = tf.convert_to_tensor(array)
    if tensor.dtype.is_floating:
        tensor = tf.cast(tensor, keras.config.floatx())
    return tensor
