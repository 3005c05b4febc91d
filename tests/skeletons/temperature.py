import keras

from keras_hposgld import hyperparameters as hp


@hp.register("temperature")
class LearnedTemperature(hp.Hyperparameter, keras.layers.Layer):
    """Divides logits by a learned temperature, in inference."""

    granularity = "layer"

    def __init__(self, initial_value=1.0, max_value=10.0, **layer_arguments):
        super().__init__(**layer_arguments)
        self.arguments = dict(initial_value=initial_value, max_value=max_value)
        start = hp.bounded_start("initial_value", initial_value, max_value)
        self.free = hp.unconstrained_variable(start, "temperature", self.name)

    def call(self, logits, training=False):
        return logits if training else logits / self.value()

    def value(self):
        return hp.bounded_value(self.free, self.arguments["max_value"])

    @property
    def hyperparameter_variables(self):
        return [self.free]

    def hyperparameter_values(self):
        return {self.free.path: self.value()}

    def exported(self):
        return keras.layers.Rescaling(1 / float(self.value()), name=self.name)

    def get_config(self):
        return super().get_config() | self.arguments
