"""How many chains were drawn before a `fit`."""

from typing import Any

import keras


class FirstChain(keras.callbacks.Callback):
    """How many chains were drawn before this `fit`.

    It is read when training begins: by then a callback before this one may
    have restored the model from a backup. Later would be too late: within a
    compiled step the counter may move before the first batch is asked for.

    Attributes:
        number: Function that returns it. It does not hold the model, so that
            TensorFlow may keep it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = _Number()

    def on_train_begin(self, logs: Any = None) -> None:
        self.number.value = int(self.model.outer_iterations.numpy())

    def on_train_end(self, logs: Any = None) -> None:
        self.set_model(None)


class _Number:
    value = 0

    def __call__(self) -> int:
        return self.value
