"""What the outer level adds to the logs of a `fit`."""

import keras


class OuterLogs(keras.layers.Layer):
    """The metrics of the outer level: its loss, the hypergradient, failures."""

    def __init__(self) -> None:
        super().__init__(name="outer_logs", trainable=False)
        self.loss = keras.metrics.Mean(name="outer_loss")
        self.norm = keras.metrics.Mean(name="hypergradient_norm")
        self.skips = keras.metrics.Sum(name="skipped_updates")
        self.built = True

    def without_training(self, logs: dict) -> dict:
        """Logs of an evaluation, without what only training has."""
        own = (self.norm.name, self.skips.name, "halvings")
        return {key: value for key, value in logs.items() if key not in own}
