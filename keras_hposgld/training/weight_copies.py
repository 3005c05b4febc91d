"""Saved copies of a model's weights, or of what is shaped like them."""

import keras


class WeightCopies(keras.layers.Layer):
    """Variables shaped like the weights, saved with the layer they hang on.

    `BilevelModel` keeps in them the weights that every chain starts from, and
    what an estimator remembers from chain to chain.

    Attributes:
        values: List of variables, empty until `build_for` was called.
        are_set: Whether they hold copies, and not their initial zeros.
    """

    def __init__(self, name: str):
        super().__init__(name=name, trainable=False)
        self.values: list[keras.Variable] = []
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

    def build(self, input_shape=None):
        """Does nothing: see `build_for`."""

    def build_for(self, weights: list) -> None:
        """Creates the copies as zeros, unless they are there.

        Args:
            weights: List of what has a shape and a dtype.
        """
        if not self.values:
            self.values = [
                keras.Variable(
                    "zeros",
                    shape=weight.shape,
                    dtype=weight.dtype,
                    trainable=False,
                    name=f"{self.name}_{position}",
                )
                for position, weight in enumerate(weights)
            ]
            self.built = True

    def load_own_variables(self, store) -> None:
        """Loads the copies, also before `compile` has said that any exist."""
        is_set, *saved = (store[str(n)] for n in range(len(store.keys())))
        if saved:  # else they are of a learner that had none
            self._is_set.assign(is_set)
            self.build_for(saved)
            for value, array in zip(self.values, saved, strict=True):
                value.assign(array)

    def remember(self, weights: list[keras.Variable]) -> None:
        """Copies the weights as they are now."""
        self._is_set.assign(1)
        for value, weight in zip(self.values, weights, strict=True):
            value.assign(weight)
