"""How the batches of a chain are divided among the replicas."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def distribute_chains(
    strategy: tf.distribute.Strategy, make_dataset: Callable
) -> tf.data.Dataset:
    """Gives each replica its part of every batch of a chain.

    Args:
        strategy: `tf.distribute.Strategy`.
        make_dataset: Function without arguments to a dataset of stacked
            batches `(num_steps, batch_size, ...)`. It is called in each
            process, and must give the same there.

    Returns:
        A distributed dataset of stacked batches `(num_steps, batch_size /
        number of replicas, ...)`.
    """
    number = strategy.num_replicas_in_sync

    def worker_dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        own = number // context.num_input_pipelines
        first = context.input_pipeline_id * own

        def split(stacked: tf.Tensor) -> tf.Tensor:
            size = (stacked.shape[1] or tf.shape(stacked)[1]) // number
            return tf.stack(
                [
                    stacked[:, (first + n) * size : (first + n + 1) * size]
                    for n in range(own)
                ]
            )

        def shares(*chain: Any) -> tf.data.Dataset:
            # Of consecutive elements, each local replica takes one.
            return tf.data.Dataset.from_tensor_slices(
                tf.nest.map_structure(split, chain)
            )

        return make_dataset().flat_map(shares).prefetch(own)

    return strategy.distribute_datasets_from_function(worker_dataset)
