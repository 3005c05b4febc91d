"""The known samplers, by name."""

from typing import Any

import keras

from keras_hposgld.core.registry import Registry
from keras_hposgld.samplers.from_keras import from_optimizer
from keras_hposgld.samplers.sampler import Sampler

REGISTRY = Registry("sampler")
register = REGISTRY.register


def get(identifier: Any, name: str = "sampler") -> Sampler:
    """Returns a sampler, from an instance, a name or a config.

    Args:
        identifier: `Sampler`; a Keras optimizer of a kind that `from_optimizer`
            serves; a name such as `"sgld"` or `"adam"`; or what `serialize`
            returned.
        name: String, what messages call the argument. Defaults to
            `"sampler"`.

    Raises:
        ValueError: If the name is unknown, or the optimizer is of a kind that
            is not served.
        TypeError: If `identifier` is something else.

    Example:

    ```python
    import keras_hposgld as hs

    assert isinstance(hs.samplers.get("sgld"), hs.SGLD)
    print(hs.samplers.get("adam").momentum)  # Adam's beta_1
    ```
    """
    if isinstance(identifier, Sampler):
        return identifier
    if isinstance(identifier, keras.optimizers.Optimizer):
        return from_optimizer(identifier)
    if isinstance(identifier, dict):
        return deserialize(identifier)
    if not isinstance(identifier, str):
        raise TypeError(
            f"`{name}` must be a `keras_hposgld.SGLD`, another "
            "`keras_hposgld.samplers.Sampler`, a Keras optimizer, a name or a "
            f"config. Received: {name}={identifier!r} of type "
            f"{type(identifier).__name__}. Use "
            "`keras_hposgld.SGLD(learning_rate)`."
        )
    known = REGISTRY.find(identifier)
    if known is not None:
        return known()
    try:
        optimizer = keras.optimizers.get(identifier)
    except ValueError as error:
        raise REGISTRY.unknown(identifier) from error
    return from_optimizer(optimizer)


def serialize(sampler: Sampler) -> dict:
    """Returns a JSON-able dictionary from which `deserialize` rebuilds."""
    wrapped = sampler.keras_optimizer()
    return keras.saving.serialize_keras_object(
        sampler if wrapped is None else wrapped
    )


def deserialize(config: dict) -> Sampler:
    """Rebuilds a sampler from what `serialize` returned."""
    return get(keras.saving.deserialize_keras_object(config))
