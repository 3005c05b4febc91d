"""What `compile` takes as a loss, as an object of Keras's class `Loss`."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def keras_loss(loss: Any) -> keras.losses.Loss:
    """The loss that Keras would make of an argument of `compile`.

    Args:
        loss: What `keras.losses.get` takes: a name, a function of
            `(y, y_pred)`, or a `keras.losses.Loss`.

    Raises:
        ValueError: If Keras knows no such loss.
    """
    loss = keras.losses.get(loss)
    if isinstance(loss, keras.losses.Loss):
        return loss
    return FunctionLoss(loss)


@keras.saving.register_keras_serializable(package="keras_hposgld")
class FunctionLoss(keras.losses.Loss):
    """The mean of a function of `(y, y_pred)` over the batch.

    As Keras makes it, whose own class for this has no public name.

    Args:
        function: Function from targets and predictions to losses.
        name: String. Defaults to the name of the function.
    """

    def __init__(self, function: Callable, name: str | None = None):
        name = name or getattr(function, "__name__", type(function).__name__)
        super().__init__(name=name)
        self.function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if not (keras.tree.is_nested(y_true) or keras.tree.is_nested(y_pred)):
            y_true, y_pred = _of_one_rank(y_true, y_pred)
        return self.function(y_true, y_pred)

    def get_config(self) -> dict:
        function = keras.saving.serialize_keras_object(self.function)
        return {"name": self.name, "function": function}

    @classmethod
    def from_config(cls, config: dict) -> "FunctionLoss":
        function = keras.saving.deserialize_keras_object(config["function"])
        return cls(function, config["name"])


def _of_one_rank(y_true: Any, y_pred: Any) -> tuple[Any, Any]:
    """Gives `(n,)` and `(n, 1)` one shape, lest they broadcast to `(n, n)`."""
    ranks = len(y_true.shape), len(y_pred.shape)
    if ranks[0] == ranks[1] - 1 and y_pred.shape[-1] == 1:
        return tf.expand_dims(y_true, -1), y_pred
    if ranks[0] == ranks[1] + 1 and y_true.shape[-1] == 1:
        return tf.squeeze(y_true, -1), y_pred
    return y_true, y_pred
