"""A training step that also writes down what it trains on."""

from collections.abc import Callable
from typing import Any

import keras


class RecordingStep:
    """Takes the place of a model's `train_step` for the time of a `fit`.

    A callback does not get to see the data of `fit`. Several may record.

    Args:
        model: Compiled `keras.Model`.
    """

    def __init__(self, model: keras.Model):
        self.train_step = model.train_step
        self.train_function = model.train_function
        self.writers: list[Callable] = []
        self.is_new = True  # TensorFlow makes variables in the first trace only

    def __call__(self, data: Any) -> Any:
        for write in self.writers:
            write(data, self.is_new)
        self.is_new = False
        return self.train_step(data)


def record(model: keras.Model, write: Callable) -> None:
    """Lets a function see each batch that a model trains on.

    Args:
        model: Compiled `keras.Model`.
        write: Function of a batch, and of whether it may make variables. A
            `fit` that was broken off leaves it behind for the next one, whose
            data may be others.
    """
    step = _recording(model)
    if step is None:
        step = model.train_step = RecordingStep(model)
    step.writers.append(write)
    step.is_new = True
    model.make_train_function(force=True)


def stop_recording(model: keras.Model, write: Callable) -> None:
    """Ends it; also that of a `fit` that was broken off."""
    step = _recording(model)
    if step is None or write not in step.writers:
        return
    step.writers.remove(write)
    if step.writers:
        model.make_train_function(force=True)
    else:
        # The instance's own attribute hides the method of the class.
        del model.train_step
        model.train_function = step.train_function


def _recording(model):
    step = vars(model).get("train_step")
    return step if isinstance(step, RecordingStep) else None
