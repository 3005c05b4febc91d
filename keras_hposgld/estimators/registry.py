"""The known estimators, by alias."""

from typing import Any

import keras

from keras_hposgld.core.registry import Registry
from keras_hposgld.estimators.estimator import HypergradientEstimator

REGISTRY = Registry("estimator")
register = REGISTRY.register


def get(identifier: Any) -> HypergradientEstimator:
    """Returns an estimator, from an instance, an alias or a config.

    Args:
        identifier: `HypergradientEstimator`, a string such as `"hpo_sgld"`
            (the estimator with its defaults), or what `serialize` returned.

    Raises:
        ValueError: If the string is not a known alias.
        TypeError: If `identifier` is something else.
    """
    if isinstance(identifier, HypergradientEstimator):
        return identifier
    if isinstance(identifier, str):
        known = REGISTRY.find(identifier)
        if known is None:
            raise REGISTRY.unknown(identifier)
        return known()
    if isinstance(identifier, dict):
        return deserialize(identifier)
    raise TypeError(
        "An estimator is a `HypergradientEstimator`, an alias or a config. "
        f"Received: {identifier!r} of type {type(identifier).__name__}."
    )


def serialize(estimator: HypergradientEstimator) -> dict:
    """Returns a JSON-able dictionary from which `deserialize` rebuilds."""
    return keras.saving.serialize_keras_object(estimator)


def deserialize(config: dict) -> HypergradientEstimator:
    """Rebuilds an estimator from what `serialize` returned."""
    return keras.saving.deserialize_keras_object(config)
