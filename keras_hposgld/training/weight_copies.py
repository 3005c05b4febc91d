"""Saved copies of a model's weights, or of what is shaped like them."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.hyperparameters.stores import read_text
from keras_hposgld.hyperparameters.stores import write_text

_NAMES = "names"  # beside the copies, which Keras numbers


def places_of(model: keras.Model) -> list[str]:
    """The places of a model's trainable weights, in their order."""
    addresses = weight_addresses(model)
    return [addresses[id(w)] for w in model.trainable_variables]


class WeightCopies(keras.layers.Layer):
    """Variables shaped like the weights, saved with the layer they hang on.

    `BilevelModel` keeps in them the weights that every chain starts from, and
    what an estimator keeps from chain to chain. Each has a name, the place of
    its weight in the model: when layers are frozen or freed, the copies of the
    others stay.

    Attributes:
        values: List of variables, empty until `build_for` was called.
        names: List of strings, those of the values.
        remembered: Set of the names whose values are copies of weights, and
            not their initial zeros.
    """

    def __init__(self, name: str):
        super().__init__(name=name, trainable=False)
        self.values: list[keras.Variable] = []
        self.names: list[str] = []
        self.remembered: set[str] = set()
        self._is_set = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int32",
            trainable=False,
            name="is_set",
        )

    @property
    def are_set(self) -> bool:
        return bool(self._is_set.numpy())

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: see `build_for`."""

    def build_for(self, weights: list, names: list[str]) -> None:
        """Creates the copies that are not there, as zeros; drops the others.

        Args:
            weights: List of what has a shape and a dtype.
            names: List of strings, one for each weight.
        """
        if not self.names:  # of a file of version 0.1.0, without names
            self.names = list(names[: len(self.values)])
        there = dict(zip(self.names, self.values, strict=True))
        wanted = dict(zip(names, weights, strict=True))
        kept = {
            name: value
            for name, value in there.items()
            if name in wanted and value.shape == tuple(wanted[name].shape)
        }
        if list(kept) == list(there) == list(names):
            return
        if not kept:
            self._is_set.assign(0)
        for position in reversed(range(len(self.values))):
            del self.values[position]  # Keras forgets it, too
        for name, weight in wanted.items():
            value = kept[name] if name in kept else self._zeros(weight)
            self.values.append(value)
        self.names = list(names)
        self.remembered = {name for name in self.remembered if name in kept}
        self.built = True

    def _zeros(self, weight: Any) -> keras.Variable:
        return keras.Variable(
            "zeros",
            shape=weight.shape,
            dtype=weight.dtype,
            trainable=False,
            name=f"{self.name}_copy",
        )

    def remember(self, weights: list[keras.Variable]) -> None:
        """Copies the weights of which there is no copy yet, as they are now."""
        if self.are_set and not self.remembered:
            self.remembered = set(self.names)  # restored by a checkpoint
        self._is_set.assign(1)
        for name, value, weight in zip(
            self.names, self.values, weights, strict=True
        ):
            if name not in self.remembered:
                value.assign(weight)
        self.remembered.update(self.names)

    def forget_if(self, failed: tf.Tensor) -> None:
        """Makes the copies zero if `failed` is 1, and leaves them if it is 0.

        What is kept from a chain that failed may be why it did.
        """
        for variable in self.values:
            value = tf.convert_to_tensor(variable.value)
            keeps = tf.cast(1.0 - failed, value.dtype)
            variable.assign(tf.math.multiply_no_nan(value, keeps))

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        write_text(store, _NAMES, list(self.names))

    def load_own_variables(self, store: Any) -> None:
        """Loads the copies, also before `compile` has said that any exist."""
        names = read_text(store, _NAMES)
        numbers = range(len(store.keys()) - (names is not None))
        is_set, *saved = (store[str(n)] for n in numbers)
        self._is_set.assign(is_set)
        if not saved:  # they are of a learner that had none
            return
        if names is None:  # of version 0.1.0
            names = self.names or [str(n) for n in range(len(saved))]
        self.build_for(saved, names)  # which may say that none is set
        self._is_set.assign(is_set)
        for value, array in zip(self.values, saved, strict=True):
            value.assign(array)
        self.remembered = set(names) if self.are_set else set()
