"""Where a chain runs: on one replica, or on several.

Both kinds of placement have the same methods, so that nothing else asks which
of them it has.
"""

import keras
import tensorflow as tf

from keras_hposgld.training.placement.one_replica import OneReplica
from keras_hposgld.training.placement.replicas import Replicas

Placement = OneReplica | Replicas


def placement_of(strategy: tf.distribute.Strategy | None) -> Placement:
    """The placement under a strategy; `None` where there is none.

    `OneDeviceStrategy` has one replica: there an optimizer may stand in a
    condition. Under any other strategy a step spans the replicas, even if
    there is only one.
    """
    one_device = tf.distribute.OneDeviceStrategy
    if strategy is None or isinstance(strategy, one_device):
        return OneReplica(strategy)
    return Replicas(strategy)


def current() -> Placement:
    """The placement under the strategy in whose scope the caller is."""
    if not tf.distribute.has_strategy():
        return placement_of(None)
    return placement_of(tf.distribute.get_strategy())


def of_model(model: keras.Model) -> Placement:
    """The placement under the strategy that a built model was made under."""
    for variable in model.variables:
        return placement_of(
            getattr(variable.value, "distribute_strategy", None)
        )
    return placement_of(None)
