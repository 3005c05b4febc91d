"""Batches from a `keras.utils.PyDataset`, which is read by position."""

import itertools
import math
import warnings

import tensorflow as tf

from keras_hposgld.data import batches
from keras_hposgld.data.elements import as_batch
from keras_hposgld.data.elements import length_of


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
        inputs: See `elements.inputs_of`.
        needs_targets: As in `elements.as_batch`.

    Raises:
        ValueError: If it is empty, or gives something else than batches.
    """

    def __init__(
        self,
        name,
        sequence,
        shuffle=True,
        seed=0,
        prepare=lambda batch: batch,
        inputs=None,
        needs_targets=True,
    ):
        if sequence.use_multiprocessing:
            warnings.warn(
                f"`{name}` asks for `use_multiprocessing`: its batches are "
                f"read by {sequence.workers} threads instead.",
                stacklevel=2,
            )
        self.name = name
        self.sequence = sequence
        self.prepare = prepare
        self.needs_targets = needs_targets
        self.shuffle = shuffle
        self.seed = seed
        self._length = sequence.num_batches  # None: it never ends
        if self._length == 0:
            raise ValueError(
                f"`{name}` must hold at least one batch. "
                "Received: a `PyDataset` of length 0."
            )
        seen = [self._read(0)]
        if self._length is not None and self._length > 1:
            seen.append(self._read(self._length - 1))  # which may be shorter
        self._last_size = length_of(name, seen[-1])
        super().__init__(name, seen, inputs)

    def _read(self, index):
        batch = batches.standardized(self.sequence[int(index)])
        return self.prepare(as_batch(self.name, batch, self.needs_targets))

    @property
    def batches_per_pass(self) -> float:
        if self._length is None:
            return math.inf
        return self._length - 1 + self._last_size / self.batch_size

    def chains(self, num_steps, first=lambda: 0, keeps_lengths=True):
        """Stacked batches for chain number `first()`, `first() + 1`, ..."""
        specs = self.flat_spec
        read = batches.weakly(self._tensors)
        positions_from = batches.weakly(self._positions)
        examples_per_chain = num_steps * self.batch_size

        def load(index, offset):
            tensors = tf.numpy_function(
                read, [index, offset], [spec.dtype for spec in specs]
            )
            for tensor, spec in zip(tensors, specs, strict=True):
                tensor.set_shape(spec.shape)
            return tuple(tensors)

        position = tf.TensorSpec((), tf.int64)
        positions = tf.data.Dataset.from_generator(
            lambda: positions_from(first() * examples_per_chain),
            output_signature=(position, position),
        )
        read_batches = positions.map(
            load,
            num_parallel_calls=max(self.sequence.workers, 1),
            deterministic=True,
        )
        return self.stacked(
            read_batches, num_steps, keeps_lengths, may_end=False
        )

    def _tensors(self, index, offset):
        return [part[offset:] for part in self.checked(self._read(index))]

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
