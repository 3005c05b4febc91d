"""What code that runs on a replica, one of several or the only one, asks."""

from collections.abc import Callable

import tensorflow as tf


def replica_number() -> tf.Tensor | int:
    """Which of the replicas the caller is on, counted from 0."""
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def local_loss(loss: tf.Tensor) -> tf.Tensor:
    """A Keras loss as it is on one replica, whose mean is the whole loss."""
    return loss * tf.distribute.get_strategy().num_replicas_in_sync


def mean_over_replicas(tensors: list) -> list:
    """The mean over the replicas, seen from one of them.

    On the way back it is the identity: with a vector that is the same on all
    replicas, that gives each replica's own part of a product with the
    derivative of the mean, and the mean of those parts is the product.
    """
    context = tf.distribute.get_replica_context()

    @tf.custom_gradient
    def mean(*local: tf.Tensor) -> tuple[tuple, Callable]:
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, list(local))
        return tuple(means), lambda *upstream: upstream

    means = mean(*tensors)
    return list(means) if isinstance(means, list | tuple) else [means]
