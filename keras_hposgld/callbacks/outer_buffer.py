"""The outer batches of the next steps, in variables that a step can read.

Keras may compile a training step by XLA, or run several in one call. Neither
can draw from a dataset of ours, so the batches are laid down before.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld.core.loop import batch_at
from keras_hposgld.training.placement import Placement


class OuterBuffer(tf.Module):
    """Keeps the outer batches of some chains, the latest over the oldest.

    Args:
        num_chains: Integer: of how many chains at a time.
        varies: Whether batches may differ in more than their size, as those of
            sentences do.
        placement: `OneReplica` or `Replicas`.
    """

    def __init__(self, num_chains: int, varies: bool, placement: Placement):
        super().__init__()
        self.num_chains = num_chains
        self.varies = varies
        self.placement = placement
        # A module would wrap the structure of a batch, which is the user's.
        self._slots: Callable = list

    def serves(self, num_chains: int, varies: bool, batches: Any) -> bool:
        """Whether it can do what another one would be made for.

        Args:
            num_chains: Integer, as in the constructor.
            varies: Likewise.
            batches: What is to be laid down first.
        """
        if (self.num_chains, self.varies) != (num_chains, varies):
            return False
        slot = self._slots()[0]
        first = tf.nest.map_structure(self.placement.first, batches)
        try:
            tf.nest.assert_same_structure(slot, first)
        except (TypeError, ValueError):
            return False
        return all(
            variable.dtype == tensor.dtype
            and variable.shape.is_compatible_with(tensor.shape)
            for variable, tensor in zip(
                tf.nest.flatten(slot), tf.nest.flatten(first), strict=True
            )
        )

    def put(self, chain: int, batches: Any) -> None:
        """Lays down the outer batches of a chain.

        Args:
            chain: Integer, the number of the chain.
            batches: Structure of tensors, of each replica its own.
        """
        if not self._slots():
            slots = [self._variables(batches) for _ in range(self.num_chains)]
            self._slots = lambda: slots
        slot = self._slots()[chain % self.num_chains]

        def assign(batches: Any) -> None:
            tf.nest.map_structure(lambda v, x: v.assign(x), slot, batches)

        self.placement.call(assign, batches)

    def batch(self, chain: tf.Tensor, place: tf.Tensor) -> Any:
        """A batch, read by the step that needs it.

        Args:
            chain: Integer tensor, the number of the chain.
            place: Integer tensor: which of the chain's batches.
        """

        slots = self._slots()
        if len(slots) == 1:
            return batch_at(slots[0], place)
        return tf.switch_case(
            tf.cast(chain % self.num_chains, tf.int32),
            [lambda slot=slot: batch_at(slot, place) for slot in slots],
        )

    def _variables(self, batches: Any) -> Any:
        def variable(x: tf.Tensor) -> tf.Variable:
            rest = [None] * (x.shape.rank - 2) if self.varies else x.shape[2:]
            return self.placement.own_variable(x, [x.shape[0], None, *rest])

        first = tf.nest.map_structure(self.placement.first, batches)
        return tf.nest.map_structure(variable, first)
