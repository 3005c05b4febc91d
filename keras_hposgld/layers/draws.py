"""Random numbers of layers, the same ones under any compiler.

They are made from raw random integers, which are the same everywhere; see
`samplers/noise.py`. Each replica draws numbers of its own, since it has
examples of its own.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.samplers.noise import fold_in


def next_seed(generator: keras.random.SeedGenerator) -> tf.Tensor:
    """The next seed of a generator, another one on each replica.

    Returns:
        Integer tensor of shape `(2,)`.
    """
    seed = tf.cast(generator.next(), tf.int32)
    context = tf.distribute.get_replica_context()
    number = 0 if context is None else context.replica_id_in_sync_group
    return fold_in(seed, number)


def uniform(shape: Any, dtype: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draws uniform numbers between 0 and 1, both excluded.

    Args:
        shape: Integer tensor, or list of integers.
        dtype: Floating-point dtype of 32 bits or more.
        seed: Integer tensor of shape `(2,)`.
    """
    words = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    # The upper 24 bits, sign included, centered in their cells.
    upper = tf.cast(tf.bitwise.right_shift(words, 8), dtype)
    return (upper + 0.5) * 2.0**-24 + 0.5
