"""How many chains were drawn before a `fit`."""

import keras


class FirstChain(keras.callbacks.Callback):
    """How many chains were drawn before this `fit`, as a function.

    It is read when training begins: by then a callback before this one may
    have restored the model from a backup. Later would be too late: within a
    compiled step the counter may move before the first batch is asked for.
    """

    def on_train_begin(self, logs=None):
        self.number = int(self.model.outer_iterations.numpy())

    def __call__(self) -> int:
        return self.number
