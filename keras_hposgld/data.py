"""The batches of the two levels, stacked for whole chains.

One outer iteration takes as many inner batches, and as many outer batches, as
its chain has steps. They come stacked on a new leading axis.

Arrays are drawn without replacement, pass after pass, in an order that is a
function of a seed and of the number of the outer iteration alone: training
that goes on after a break draws what it would have drawn. A batch may hold the
last examples of one pass and the first of the next, so all have one size.
"""

import itertools
import math

import keras
import numpy as np
import tensorflow as tf

DEFAULT_BATCH_SIZE = 32


class ArrayData:
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
        self.batch_size = min(
            _checked_batch_size(batch_size), self.num_examples
        )
        self.shuffle = shuffle
        self.seed = seed

    @property
    def batches_per_pass(self) -> float:
        return self.num_examples / self.batch_size

    @property
    def spec(self):
        return tf.nest.map_structure(
            lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype),
            self.examples,
        )

    def first_batch(self):
        return tf.nest.map_structure(
            lambda x: x[: self.batch_size], self.examples
        )

    def chains(self, num_steps: int, first=lambda: 0) -> tf.data.Dataset:
        """Stacked batches for chain number `first()`, `first() + 1`, ..."""

        def draw():
            for chain in itertools.count(first()):
                yield self._indices(chain * num_steps, num_steps)

        indices = tf.data.Dataset.from_generator(
            draw,
            output_signature=tf.TensorSpec(
                (num_steps, self.batch_size), tf.int64
            ),
        )
        return indices.map(
            lambda index: tf.nest.map_structure(
                lambda x: tf.gather(x, index), self.examples
            ),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def _indices(self, first_batch, num_batches):
        position = first_batch * self.batch_size
        missing = num_batches * self.batch_size
        drawn = []
        while missing:
            number, offset = divmod(position, self.num_examples)
            part = self._order(number)[offset : offset + missing]
            drawn.append(part)
            position += len(part)
            missing -= len(part)
        return np.concatenate(drawn).reshape(num_batches, self.batch_size)

    def _order(self, number_of_pass):
        if not self.shuffle:
            return np.arange(self.num_examples)
        generator = np.random.default_rng((self.seed, number_of_pass))
        return generator.permutation(self.num_examples)


class StreamData:
    """Batches of one level from a `tf.data.Dataset`, repeated without end.

    Args:
        name: What the user calls this data, for messages.
        dataset: Dataset of batches `(x, y)` or `(x, y, sample_weight)`.

    Raises:
        ValueError: If the dataset is empty or its elements are not batches.
    """

    def __init__(self, name, dataset):
        self.name = name
        self.dataset = dataset
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(
                f"`{name}` must hold at least one batch. "
                "Received: an empty dataset."
            )
        if not isinstance(first, tuple) or len(first) not in (2, 3):
            raise ValueError(
                f"The elements of `{name}` must be (x, y) or "
                "(x, y, sample_weight). Received: elements of type "
                f"{type(first).__name__}."
            )
        shapes = [tuple(tensor.shape) for tensor in tf.nest.flatten(first)]
        if () in shapes or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(
                f"`{name}` must be a dataset of batches, whose tensors have "
                f"one length. Received: tensors of shapes {shapes}. Call "
                "`dataset.batch(...)`."
            )
        self._first = first
        self.batch_size = shapes[0][0]

    @property
    def batches_per_pass(self) -> float:
        """Number of batches in the dataset; infinity where it never ends."""
        cardinality = int(self.dataset.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            return math.inf
        if cardinality == tf.data.UNKNOWN_CARDINALITY:
            return float(self.dataset.reduce(0, lambda n, _: n + 1))
        return float(cardinality)

    @property
    def spec(self):
        return tf.nest.map_structure(
            lambda x: tf.TensorSpec((None, *x.shape[1:]), x.dtype), self._first
        )

    def first_batch(self):
        return self._first

    def chains(self, num_steps: int, first=lambda: 0) -> tf.data.Dataset:
        """Stacked batches for one chain after the other.

        The dataset is read from its beginning, whatever `first` is. Batches
        are cut anew across passes, so that a short last one does no harm.
        """
        del first

        def with_rank(*batch):
            # A generator may not say what its elements look like.
            def known(tensor, like):
                return tf.ensure_shape(tensor, [None, *like.shape[1:]])

            return tf.nest.map_structure(known, batch, self._first)

        batches = (
            self.dataset.map(with_rank)
            .repeat()
            .rebatch(self.batch_size, drop_remainder=True)
        )
        return batches.batch(num_steps, drop_remainder=True)


def as_tuples(structure):
    """A structure with tuples for lists: what a dataset makes of it."""
    if isinstance(structure, dict):
        return {key: as_tuples(value) for key, value in structure.items()}
    if isinstance(structure, list | tuple):
        return tuple(as_tuples(value) for value in structure)
    return structure


def _as_tensor(array):
    tensor = tf.convert_to_tensor(array)
    if tensor.dtype.is_floating:
        tensor = tf.cast(tensor, keras.config.floatx())
    return tensor


def _checked_batch_size(batch_size):
    if batch_size is None:
        return DEFAULT_BATCH_SIZE
    if batch_size < 1:
        raise ValueError(
            "`batch_size` must be at least 1. "
            f"Received: batch_size={batch_size}."
        )
    return int(batch_size)
