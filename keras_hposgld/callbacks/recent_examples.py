"""The examples that `fit` trained on last, for the chains of a callback."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld.data.elements import flat
from keras_hposgld.data.elements import packed
from keras_hposgld.data.padding import Padded


class RecentExamples(tf.Module):
    """A ring buffer of training examples, written by the training step.

    Batches may differ in length, as sentences do: a tensor of the buffer then
    grows to the longest, with zeros at the end of the others, and the length of
    each example stands beside it. Examples of another structure (sample
    weights that a `fit` before had not) start a buffer anew.

    Args:
        capacity: Integer, the number of examples that are kept.

    Attributes:
        is_compiled: Whether XLA compiles the step, which lets no tensor grow.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.is_compiled = False
        self.num_written = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.buffers: Any = None
        self.lengths: Any = {}  # by the number of the buffer, where they differ
        # In functions: a module wraps dictionaries, and `keras.tree` takes the
        # wrappers for leaves.
        self._structure: Callable = lambda: None
        self._shapes: Callable = list

    @property
    def is_full(self) -> bool:
        return int(self.num_written) >= self.capacity

    def write(self, batch, may_begin: bool = True) -> None:
        """Stores the examples of a batch over the oldest ones.

        Args:
            batch: Structure of tensors.
            may_begin: Whether examples of another structure start the buffer
                anew. Else they are left out.

        Raises:
            ValueError: If batches may differ in length, in a compiled step.
        """
        if self.is_compiled:
            _check_fixed(batch)
        parts = [tf.convert_to_tensor(part) for part in flat(batch)]
        structure = packed(batch, [0] * len(parts))
        with tf.init_scope():  # the step may be traced just now
            if not self._takes(structure, parts):
                if not may_begin:
                    return
                self._begin(structure, parts)
            self._open(parts)
        # Of a batch that is larger than the buffer, its end.
        parts = [part[-self.capacity :] for part in parts]
        number = tf.shape(parts[0], out_type=tf.int64)[0]
        places = (self.num_written + tf.range(number)) % self.capacity
        for n, (buffer, part) in enumerate(
            zip(self.buffers, parts, strict=True)
        ):
            if str(n) in self.lengths:
                sizes = tf.shape(part)[1:]
                part = _equally_long(buffer, part)
                self.lengths[str(n)].scatter_nd_update(
                    places[:, None], tf.tile(sizes[None], [number, 1])
                )
            buffer.scatter_nd_update(places[:, None], part)
        self.num_written.assign_add(number)

    def _takes(self, structure, parts):
        """Whether the buffers are for such examples, whatever their length."""
        if self.buffers is None:
            return False
        try:
            tf.nest.assert_same_structure(self._structure(), structure)
        except (TypeError, ValueError):
            return False
        return all(
            (buffer.dtype, buffer.shape.rank) == (part.dtype, part.shape.rank)
            for buffer, part in zip(self.buffers, parts, strict=True)
        )

    def _begin(self, structure, parts):
        """Makes buffers; those of other data are forgotten."""
        if self.buffers is not None:
            self.num_written.assign(0)  # or a backup has just restored it
        shapes = [part.shape[1:].as_list() for part in parts]
        self._structure = lambda: structure
        self._shapes = lambda: shapes
        self.lengths = {}
        self.buffers = [
            tf.Variable(
                tf.zeros(
                    [self.capacity, *(size or 0 for size in shape)], part.dtype
                ),
                trainable=False,
                shape=[self.capacity, *[None] * len(shape)],
            )
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def _open(self, parts):
        """Lets a buffer grow whose examples turn out to differ in length."""
        shapes = self._shapes()
        for n, part in enumerate(parts):
            for axis, size in enumerate(part.shape[1:].as_list()):
                if size is None or size != shapes[n][axis]:
                    shapes[n][axis] = None
            if None in shapes[n] and str(n) not in self.lengths:
                sizes = tf.shape(self.buffers[n].value())[1:]
                self.lengths[str(n)] = tf.Variable(
                    tf.tile(sizes[None], [self.capacity, 1]), trainable=False
                )

    def stacked(self, num_steps: int):
        """The examples as `num_steps` batches on a new leading axis."""
        size = self.capacity // num_steps

        def reshaped(values):
            return tf.reshape(
                values, tf.concat([[num_steps, size], tf.shape(values)[1:]], 0)
            )

        parts = [reshaped(buffer.value()) for buffer in self.buffers]
        for n, shape in enumerate(self._shapes()):
            if None in shape:
                lengths = reshaped(self.lengths[str(n)].value())
                parts[n] = Padded(
                    parts[n],
                    {
                        axis + 1: lengths[..., axis]
                        for axis, length in enumerate(shape)
                        if length is None
                    },
                )
        return packed(self._structure(), parts)


def _check_fixed(batch):
    shapes = [part.shape for part in flat(batch)]
    if any(None in shape[1:] for shape in shapes):
        raise ValueError(
            "`jit_compile` must be False where the batches of `fit` may differ "
            "in length: they are recorded, and XLA lets no tensor grow. "
            f"Received: jit_compile=True and batches of shapes {shapes}. Pass "
            "`jit_compile=False` to `compile`, the training data as "
            "`inner_data`, or batches of one length."
        )


def _equally_long(buffer, part):
    """Fills up the shorter one of a buffer and a batch with zeros."""
    have, sizes = tf.shape(buffer.value())[1:], tf.shape(part)[1:]
    needed = tf.maximum(have, sizes)

    def padded(values, sizes):
        after = tf.concat([[0], needed - sizes], 0)
        return tf.pad(values, tf.stack([tf.zeros_like(after), after], 1))

    def grow():
        buffer.assign(padded(buffer.value(), have))

    tf.cond(tf.reduce_any(needed > have), grow, lambda: None)
    return padded(part, sizes)
