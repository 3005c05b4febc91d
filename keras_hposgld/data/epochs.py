"""Chains by the epoch, for Keras to count."""

from typing import Any

import tensorflow as tf


def in_epochs(chains: Any, num_chains: int, chains_per_execution: int) -> Any:
    """A dataset that ends with each epoch, and goes on in the next.

    Keras takes `steps_per_execution` steps at a time. Of a dataset without
    end it would take them beyond the end of the epoch.

    Args:
        chains: Dataset of chains, one after the other, without end.
        num_chains: Integer, the chains of an epoch.
        chains_per_execution: Integer, how many Keras takes at a time. If it is
            one, as it is under a strategy, Keras stops in time by itself: the
            dataset stays as it is, and its memory is freed earlier.
    """
    if chains_per_execution == 1:
        return chains
    iterator = iter(chains)

    def following(_):
        return tf.data.Dataset.from_tensors(iterator.get_next())

    # Not `map`: tf.data would make several chains at a time.
    return (
        tf.data.Dataset.range(num_chains)
        .flat_map(following)
        .apply(tf.data.experimental.assert_cardinality(num_chains))
    )
