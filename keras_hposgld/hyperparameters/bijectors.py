"""Maps between unconstrained variables and bounded positive values."""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp


def bounded(max_value: float, dtype: str) -> tfp.bijectors.Bijector:
    """The default map: a smooth one from the real line onto (0, max_value).

    Near zero it behaves like an exponential, so that equal steps of the
    variable are equal ratios of a small strength; the bound keeps a strength
    where an explicit step of the sampler can still follow it.
    """
    # NumPy bounds, since tensors would belong to the graph that is traced.
    return tfp.bijectors.Sigmoid(
        low=np.zeros((), dtype), high=np.asarray(max_value, dtype)
    )


def bounded_from_log(log_values: tf.Tensor, max_value: float) -> tf.Tensor:
    """The unconstrained numbers of `bounded`, from logarithms of the values.

    Exact for values that are zero in their dtype, too.
    """
    log_shares = log_values - np.log(max_value)
    return log_shares - tf.math.log1p(-tf.exp(log_shares))


def capped(values: tf.Tensor, max_value: float) -> tf.Tensor:
    """Values cut off at `max_value`, with the gradient of values that are not.

    The gradient of a plain minimum is zero above the bound: a value that got
    there could never come back.
    """

    # The derivative refers to no tensor, so tapes outside see through it.
    @tf.custom_gradient
    def cap(values):
        bound = tf.constant(max_value, values.dtype)
        return tf.minimum(values, bound), tf.identity

    return cap(values)


def serialize(bijector: tfp.bijectors.Bijector | None) -> dict | None:
    """A JSON-able description of a bijector of TensorFlow Probability.

    Raises:
        ValueError: If it is of another package, or has a parameter that is
            neither a number, a string nor a bijector.
    """
    if bijector is None:
        return None
    name = type(bijector).__name__
    if getattr(tfp.bijectors, name, None) is not type(bijector):
        raise ValueError(
            "`bijector` can be saved only if it is a class of "
            f"`tfp.bijectors`. Received: bijector={bijector!r}. Compose it of "
            "those, for instance with `tfp.bijectors.Chain`."
        )
    return {
        "bijector": name,
        "parameters": {
            key: _serialize_parameter(value)
            for key, value in bijector.parameters.items()
        },
    }


def deserialize(config: dict | None) -> tfp.bijectors.Bijector | None:
    """The bijector that `serialize` described."""
    if config is None:
        return None
    parameters = {
        key: _deserialize_parameter(value)
        for key, value in config["parameters"].items()
    }
    return getattr(tfp.bijectors, config["bijector"])(**parameters)


def _serialize_parameter(value):
    if isinstance(value, tfp.bijectors.Bijector):
        return serialize(value)
    if isinstance(value, list | tuple):
        return [_serialize_parameter(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    array = np.asarray(value)
    if array.dtype.kind not in "fi":
        raise ValueError(
            "`bijector` can be saved only with numbers as parameters. "
            f"Received: {value!r}."
        )
    return {"dtype": array.dtype.name, "array": array.tolist()}


def _deserialize_parameter(value):
    if isinstance(value, list):
        return [_deserialize_parameter(item) for item in value]
    if isinstance(value, dict) and "array" in value:
        return np.asarray(value["array"], value["dtype"])
    if isinstance(value, dict):
        return deserialize(value)
    return value
