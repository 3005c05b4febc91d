"""Noise on the inputs whose size is learned: a hyperparameter to copy.

A kind of hyperparameter is a Keras layer (or loss) that owns an unconstrained
variable, and says what value that stands for. Everything else is found by the
contract: it is learned, saved, shown, plotted and exported.
"""

import keras
import tensorflow as tf

import keras_hposgld as hs


@hs.hyperparameters.register("learned_noise")
class LearnedNoise(hs.hyperparameters.Hyperparameter, keras.layers.Layer):
    """Gaussian noise in training, whose standard deviation is learned.

    Args:
        initial_value: Float in `(0, max_value)`. Defaults to `0.1`.
        max_value: Float. Defaults to `1.0`.
        **layer_arguments: Those of `keras.layers.Layer`.

    Raises:
        ValueError: If `initial_value` is out of range.
    """

    granularity = "layer"  # what has a value of its own, for the summary

    def __init__(self, initial_value=0.1, max_value=1.0, **layer_arguments):
        super().__init__(**layer_arguments)
        start = hs.hyperparameters.bounded_start(
            "initial_value", initial_value, max_value
        )
        self.initial_value, self.max_value = initial_value, max_value
        self.deviation = hs.hyperparameters.unconstrained_variable(
            start, "deviation", self.name
        )
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, x, training=False):
        if not training:
            return x
        noise = keras.random.normal(tf.shape(x), seed=self.seed_generator)
        return x + self.value() * noise

    def value(self):
        """The standard deviation, a scalar tensor."""
        return hs.hyperparameters.bounded_value(self.deviation, self.max_value)

    @property
    def hyperparameter_variables(self):
        return [self.deviation]

    def hyperparameter_values(self):
        return {self.deviation.path: self.value()}

    def exported(self):
        return keras.layers.GaussianNoise(float(self.value()), name=self.name)

    def get_config(self):
        return super().get_config() | {
            "initial_value": self.initial_value,
            "max_value": self.max_value,
        }
