"""The examples that `fit` trained on last, for the chains of a callback."""

from typing import Any

import keras
import tensorflow as tf


class RecentExamples(tf.Module):
    """A ring buffer of training examples, written by the training step.

    Args:
        capacity: Integer, the number of examples that are kept.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.num_written = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.buffers: Any = None
        self._structure: Any = None

    @property
    def is_full(self) -> bool:
        return int(self.num_written) >= self.capacity

    def write(self, batch) -> None:
        """Stores the examples of a batch over the oldest ones."""
        parts = [part for part in tf.nest.flatten(batch) if part is not None]
        parts = [tf.convert_to_tensor(part) for part in parts]
        if self.buffers is None:
            self._structure = keras.tree.map_structure(
                lambda part: None if part is None else 0, batch
            )
            with tf.init_scope():  # the step may be traced just now
                self.buffers = [
                    tf.Variable(
                        tf.zeros([self.capacity, *part.shape[1:]], part.dtype),
                        trainable=False,
                    )
                    for part in parts
                ]
        # Of a batch that is larger than the buffer, its end.
        parts = [part[-self.capacity :] for part in parts]
        number = tf.shape(parts[0], out_type=tf.int64)[0]
        places = (self.num_written + tf.range(number)) % self.capacity
        for buffer, part in zip(self.buffers, parts, strict=True):
            buffer.scatter_nd_update(places[:, None], part)
        self.num_written.assign_add(number)

    def stacked(self, num_steps: int):
        """The examples as `num_steps` batches on a new leading axis."""
        size = self.capacity // num_steps
        parts = iter(
            tf.reshape(buffer, [num_steps, size, *buffer.shape[1:]])
            for buffer in self.buffers
        )
        return keras.tree.map_structure(
            lambda part: None if part is None else next(parts), self._structure
        )
