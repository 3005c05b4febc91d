"""Variables for numbers that are learned, and the way back from a bound."""

import contextlib
from collections.abc import Iterator

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
        max_value: Float, finite and above 0.
        shape: Tuple, the shape of the result. Defaults to `()`.

    Raises:
        ValueError: As `check_inside`.
    """
    value = check_inside(name, initial_value, max_value, shape)
    share = np.broadcast_to(value / max_value, shape)
    return np.log(share) - np.log1p(-share)


def check_inside(name: str, value, max_value: float, shape=()) -> np.ndarray:
    """Checks a value that lies within a bound and returns it.

    Args:
        name: String: what the user calls the value.
        value: Float or array in `(0, max_value)`.
        max_value: Float, finite and above 0.
        shape: Tuple, the shape of an array. Defaults to `()`: only a number
            will do.

    Raises:
        ValueError: If `value` is out of range, of another shape, or not a
            number.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.asarray(None)
    is_number = array.dtype.kind in "fiu"  # no boolean, string, object
    if not (is_number and np.all((array > 0) & (array < max_value))):
        raise ValueError(
            f"`{name}` must lie between 0 and {max_value}, both excluded. "
            f"Received: {name}={value!r}."
        )
    if array.shape not in ((), shape):
        rule = f"a number or an array of shape {shape}" if shape else "a number"
        raise ValueError(
            f"`{name}` must be {rule}. Received: {name}={value!r} of shape "
            f"{array.shape}."
        )
    return array.astype("float64")


def bounded_value(variable, max_value: float) -> tf.Tensor:
    """Numbers in `(0, max_value)`, from unconstrained ones."""
    variable = tf.convert_to_tensor(variable)
    bijector = bijectors.bounded(max_value, variable.dtype.name)
    return bijector.forward(variable)


@contextlib.contextmanager
def scope_of(path: str) -> Iterator[None]:
    """Name scopes in which a variable's path begins with `path`."""
    with contextlib.ExitStack() as stack:
        override = {"override_parent": ""}  # whatever scope is open by now
        for name in path.split("/") if path else ():
            stack.enter_context(keras.name_scope(name, **override))
            override = {}
        yield
