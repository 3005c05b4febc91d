"""The diagonal maps of one step of a sampler, as estimators use them."""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.vectors import Multiple
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.samplers.sampler import effective_scale
from keras_hposgld.samplers.sampler import Sampler


class Scales(NamedTuple):
    """The diagonal maps of one step of the sampler, see `samplers.sampler`."""

    sampler: Sampler
    state: Any
    index: Any

    def force(self, vector: list) -> list:
        """A times a vector."""
        return self.sampler.force_scale(vector, self.state, self.index)

    def velocity(self, vector: list) -> list:
        """B times a vector."""
        return self.sampler.velocity_scale(vector, self.state, self.index)

    def pushed(self, vector: list) -> Multiple:
        """A B times a vector, without a pass over it where A B is a number."""
        dtypes = [tf.float32, *(part.dtype for part in vector)]
        widest = max(dtypes, key=lambda dtype: dtype.size)
        number = self.sampler.uniform_scale(self.state, self.index, widest)
        if number is None:
            scaled = self.sampler.drift_scale(vector, self.state, self.index)
            return Multiple(1.0, scaled)
        return Multiple(number, vector)

    def direct(self, vector: list) -> list | None:
        """E times a vector; `None` where E is zero."""
        return self.sampler.direct_scale(vector, self.state, self.index)

    def decayed(self, decay: list) -> list:
        """The learning rate times a decay; `None` stands for zero."""
        return [
            None
            if part is None
            else self.sampler.learning_rate_at(self.index, part.dtype) * part
            for part in decay
        ]

    def move(self, x: list, velocity: list, force: list) -> tuple:
        """Moves a vector as the sampler does its weights, without noise.

        Args:
            x: List of tensors like the weights.
            velocity: List of tensors like them; empty without momentum.
            force: List of tensors like them, in place of the gradient.

        Returns:
            The vector and its velocity after the step.
        """
        moved = self.force(force)
        if velocity:
            moved = plus_scaled(moved, self.sampler.momentum, velocity)
        x = plus_scaled(x, -1.0, self.velocity(moved))
        direct = self.direct(force)
        if direct is not None:
            x = plus_scaled(x, -1.0, direct)
        return x, moved if velocity else []

    def effective(self, vector: list) -> list:
        """S times a vector: what a constant force moves the weights by."""
        return effective_scale(self.sampler, vector, self.state, self.index)

    def inverse(self, vector: list) -> list:
        """A vector over what a constant force of one moves the weights by."""
        scale = self.effective([tf.ones_like(part) for part in vector])
        return [a / b for a, b in zip(vector, scale, strict=True)]
