"""Variables for numbers that are learned, and the way back from a bound."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.hyperparameters import bijectors


def unconstrained_variable(value, name: str, owner: str) -> keras.Variable:
    """A variable that holds unconstrained hyperparameters.

    It is not trainable and stays in Keras's `floatx` under mixed precision.

    Args:
        value: Array, its value at the start.
        name: String.
        owner: String, the name of the object that it belongs to.
    """
    value = np.asarray(value, keras.config.floatx())
    with keras.name_scope(owner, override_parent=""):
        return keras.Variable(
            lambda shape, dtype: tf.convert_to_tensor(value, dtype),
            shape=value.shape,
            dtype=value.dtype.name,
            trainable=False,
            autocast=False,
            name=name,
        )


def bounded_start(name: str, initial_value, max_value, shape=()) -> np.ndarray:
    """The unconstrained numbers that `bounded_value` takes to some value.

    Args:
        name: String: what the user calls the value.
        initial_value: Float or array in `(0, max_value)`.
        max_value: Float.
        shape: Tuple, the shape of the result. Defaults to `()`.

    Raises:
        ValueError: If a number is out of range.
    """
    if not (math.isfinite(max_value) and max_value > 0):
        raise ValueError(
            f"The bound of `{name}` must be a finite number above 0. "
            f"Received: {max_value}."
        )
    value = np.asarray(initial_value, "float64")
    if not np.all((value > 0) & (value < max_value)):
        raise ValueError(
            f"`{name}` must lie between 0 and {max_value}, both excluded. "
            f"Received: {name}={initial_value}."
        )
    share = np.broadcast_to(value / max_value, shape)
    return np.log(share) - np.log1p(-share)


def bounded_value(variable, max_value: float) -> tf.Tensor:
    """Numbers in `(0, max_value)`, from unconstrained ones."""
    variable = tf.convert_to_tensor(variable)
    bijector = bijectors.bounded(max_value, variable.dtype.name)
    return bijector.forward(variable)
