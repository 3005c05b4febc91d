"""Weights that a chain has passed, kept for predictions.

The law of the chain is the posterior of the weights where the training data
judge by themselves. A prediction is then a mean over that law, and so over the
chain, once it has burnt in. How long training is going to take is not known
while it runs. The ring below needs no length: it holds the second half of what
has been so far, at any time, evenly spaced.

With K slots and t outer iterations so far, the weights are written after each
t that is a multiple of s(t), the smallest power of two with s(t) >= t / (2 K),
over the oldest. From t = 2 K on the ring then holds exactly those that are
newer than t / 2. Before, it holds older ones as well, which are not used.
"""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.training.weight_copies import WeightCopies

_POWERS = [2**n for n in range(62)]  # as many as an int64 holds


class PosteriorSamples(WeightCopies):
    """A ring of samples of the weights, saved with the learner.

    Attributes:
        values: List of variables of shape `(K, *weight.shape)`.
        number: Integer K, how many are to be kept; `None` until the learner
            is compiled.
        count: Variable, the number t of outer iterations so far, without
            those whose update was skipped.
        written: Variable, how many samples were written.
    """

    def __init__(self) -> None:
        super().__init__("posterior")
        self.number: int | None = None
        self.count, self.written = map(self._counter, ("count", "written"))

    def _counter(self, name: str) -> keras.Variable:
        return self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int64",
            trainable=False,
            name=name,
        )

    def _zeros(self, weight: Any) -> keras.Variable:
        return keras.Variable(
            "zeros",
            shape=weight.shape,
            dtype=weight.dtype,
            trainable=False,
            # Mixed precision would cast all samples to read one of them.
            autocast=False,
            name="posterior_samples",
        )

    # What there is room for.

    @property
    def capacity(self) -> int:
        """The number of slots, 0 before they are built."""
        return self.values[0].shape[0] if self.values else 0

    def build_for_samples(self, weights: list, names: list[str]) -> None:
        """Creates the slots; forgets all samples if the weights are others.

        Args:
            weights: List of the trainable variables.
            names: List of strings, their places.
        """
        before = list(map(id, self.values))
        slots = [
            keras.KerasTensor((self.number, *weight.shape), weight.dtype)
            for weight in weights
        ]
        self.build_for(*((slots, names) if self.number else ([], [])))
        if before != list(map(id, self.values)):
            self.reset()

    def reset(self) -> None:
        """Forgets all samples."""
        self.count.assign(0)
        self.written.assign(0)

    # Within an outer iteration.

    def follow(self, weights: list, skipped: tf.Tensor, placement: Any) -> None:
        """Counts an outer iteration, and keeps its weights if it is time.

        Args:
            weights: List of the trainable variables, at its end.
            skipped: Scalar tensor: 1 if its update was skipped because a
                number was not finite. It is not counted then.
            placement: `OneReplica` or `Replicas`.
        """
        if not self.values:
            return

        def write() -> None:
            slot = self.written.value % self.capacity
            placement.call(lambda slot: self._write(weights, slot), slot)
            self.written.assign_add(1)

        def count() -> None:
            self.count.assign_add(1)
            number = tf.convert_to_tensor(self.count.value)
            is_due = number % spacing(number, self.capacity) == 0
            tf.cond(is_due, write, lambda: None)

        tf.cond(skipped < 0.5, count, lambda: None)

    def _write(self, weights: list, slot: tf.Tensor) -> None:
        """Writes into a slot, on each replica into its own variables."""
        for value, weight in zip(self.values, weights, strict=True):
            # In place. A mirrored variable has no such method on a replica.
            tf.raw_ops.ResourceScatterUpdate(
                resource=value.value.handle,
                indices=slot,
                updates=tf.convert_to_tensor(weight.value),
            )

    # What predictions are made of.

    def num_used(self) -> tf.Tensor:
        """How many samples are of the second half, a scalar int32 tensor."""
        half = (tf.convert_to_tensor(self.count.value) + 1) // 2
        return tf.cast(tf.minimum(half, self.capacity), tf.int32)

    def reader(self, model: keras.Model) -> Callable:
        """A function from a number to that sample of the weights.

        Args:
            model: `keras.Model`, whose weights they are.

        Returns:
            Function from an integer tensor, 0 for the oldest one that is
            used, to pairs of a variable and its value.
        """
        places = weight_addresses(model)
        variables = {places[id(w)]: w for w in model.weights}
        oldest = self.written.value - tf.cast(self.num_used(), tf.int64)

        def sample(index: tf.Tensor) -> list:
            slot = (oldest + tf.cast(index, tf.int64)) % self.capacity
            return [
                (variables[name], tf.gather(value.value, slot))
                for name, value in zip(self.names, self.values, strict=True)
            ]

        return sample

    def load_own_variables(self, store: Any) -> None:
        """Loads the samples, also before `compile` has said how many."""
        keys = list(store.keys())
        if not keys:  # of a version without samples
            return
        numbered = [key for key in keys if key.isdigit()]
        saved = [store[str(n)] for n in range(3, len(numbered))]
        number = saved[0].shape[0] if saved else 0
        if self.number not in (None, number):
            self._leave_out(number)
            return
        # As the base has them: one counter, and the values.
        own = {key: store[key] for key in keys if key not in numbered}
        own |= {str(n): value for n, value in enumerate(saved, 1)}
        super().load_own_variables(own | {"0": store["0"]})
        counters = (self._is_set, self.count, self.written)
        for position, counter in enumerate(counters):
            counter.assign(store[str(position)])

    def _leave_out(self, number: int) -> None:
        self.reset()
        if self.number and number:
            warnings.warn(
                "The samples in the file are left out: the model was compiled "
                f"to keep another number. Received: {number} samples, and "
                f"posterior_samples={self.number}. Predictions are those of "
                "the last sample until there are new ones.",
                stacklevel=2,
            )


def spacing(count: Any, number: int) -> tf.Tensor:
    """The smallest power of two that is at least `count / (2 * number)`.

    Args:
        count: Integer or int64 tensor, at least 1.
        number: Integer, at least 1.
    """
    powers = tf.constant(_POWERS, tf.int64)
    times = (tf.cast(count, tf.int64) - 1) // (2 * number)
    # The number of binary digits of `times`.
    return tf.gather(powers, tf.reduce_sum(tf.cast(times >= powers, tf.int32)))
