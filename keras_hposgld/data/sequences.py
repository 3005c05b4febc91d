"""Batches from a `keras.utils.PyDataset`, which is read by position."""

import itertools
import math
import warnings

import tensorflow as tf

from keras_hposgld.data import batches


class SequenceData(batches.BatchedData):
    """Batches of one level from a `keras.utils.PyDataset`.

    As with arrays, the order of the batches is a function of the seed and of
    the number of the outer iteration, so that training goes on after a break
    as without one (unless the object shuffles by itself).

    Args:
        name: What the user calls this data, for messages.
        sequence: `keras.utils.PyDataset`. `on_epoch_begin` and
            `on_epoch_end` are called around each pass; `workers` threads read.
        shuffle: Whether the order of the batches changes from pass to pass.
        seed: Integer.
        prepare: Function applied to each batch.

    Raises:
        ValueError: If it is empty, or gives something else than batches.
    """

    def __init__(
        self, name, sequence, shuffle=True, seed=0, prepare=lambda batch: batch
    ):
        if sequence.use_multiprocessing:
            warnings.warn(
                f"`{name}` asks for `use_multiprocessing`: its batches are "
                f"read by {sequence.workers} threads instead.",
                stacklevel=2,
            )
        self.sequence = sequence
        self.prepare = prepare
        self.shuffle = shuffle
        self.seed = seed
        self._length = sequence.num_batches  # None: it never ends
        if self._length == 0:
            raise ValueError(
                f"`{name}` must hold at least one batch. "
                "Received: a `PyDataset` of length 0."
            )
        super().__init__(name, self._read(0))
        last = self._first
        if self._length is not None and self._length > 1:
            last = self._read(self._length - 1)  # which may be shorter
        self._last_size = batches.length_of(name, last)

    def _read(self, index):
        return self.prepare(batches.standardized(self.sequence[int(index)]))

    @property
    def batches_per_pass(self) -> float:
        if self._length is None:
            return math.inf
        return self._length - 1 + self._last_size / self.batch_size

    def chains(self, num_steps: int, first=lambda: 0) -> tf.data.Dataset:
        """Stacked batches for chain number `first()`, `first() + 1`, ..."""
        spec = tf.nest.flatten(self.spec)

        def read(index, offset):
            arrays = tf.nest.flatten(self._read(index))
            return [array[offset:] for array in arrays]

        def load(index, offset):
            flat = tf.numpy_function(
                read, [index, offset], [s.dtype for s in spec]
            )
            for tensor, s in zip(flat, spec, strict=True):
                tensor.set_shape(s.shape)
            return tf.nest.pack_sequence_as(self.spec, flat)

        position = tf.TensorSpec((), tf.int64)
        positions = tf.data.Dataset.from_generator(
            lambda: self._positions(first() * num_steps * self.batch_size),
            output_signature=(position, position),
        )
        read_batches = positions.map(
            load,
            num_parallel_calls=max(self.sequence.workers, 1),
            deterministic=True,
        )
        return batches.stack(read_batches, self.batch_size, num_steps)

    def _positions(self, num_seen):
        """Which batch comes next, and how many of its examples were seen."""
        if self._length is None:
            index, offset = divmod(num_seen, self.batch_size)
            yield index, offset
            for following in itertools.count(index + 1):
                yield following, 0
        number, offset = divmod(
            num_seen, round(self.batches_per_pass * self.batch_size)
        )
        for pass_number in itertools.count(number):
            self.sequence.on_epoch_begin()
            for index in batches.order_of_pass(
                self._length, self.shuffle, self.seed, pass_number
            ):
                is_last = index == self._length - 1
                size = self._last_size if is_last else self.batch_size
                if offset >= size:
                    offset -= size
                    continue
                yield index, offset
                offset = 0
            self.sequence.on_epoch_end()
