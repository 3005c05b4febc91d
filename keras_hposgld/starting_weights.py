"""The weights that every chain starts from, where it is not the last's end."""

import keras


class StartingWeights(keras.layers.Layer):
    """A saved copy of the weights at the first fit."""

    def __init__(self):
        super().__init__(name="starting_weights", trainable=False)
        self.values = []

    def build(self, input_shape=None):
        """Does nothing: see `build_for`."""

    def build_for(self, weights: list[keras.Variable]) -> None:
        """Creates the copies, so that saved ones can be loaded into them."""
        if not self.values:
            self.values = [
                keras.Variable(
                    "zeros",
                    shape=weight.shape,
                    dtype=weight.dtype,
                    trainable=False,
                    name=f"start_{position}",
                )
                for position, weight in enumerate(weights)
            ]
            self.built = True

    def remember(self, weights: list[keras.Variable]) -> None:
        """Copies the weights as they are now."""
        for value, weight in zip(self.values, weights, strict=True):
            value.assign(weight)
