"""The loop around the replicas, in which each keeps its state where it is.

A `tf.while_loop` passes all of its state through operations that belong to no
replica. TensorFlow would put them on the first device: what the other replicas
carry would travel there and back at every step, and the first device would
hold all of it at once, for `RMD` the paths of all replicas.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld.core.loop import run_steps


def run_steps_around(
    call: Callable, step: Callable, state: Any, num_steps: Any, *args: Any
) -> Any:
    """The state after some steps, by one `tf.while_loop`.

    Args:
        call: Function of a function and its arguments that calls it on each
            replica with its own part of them.
        step: Function `(state, index, *args)` to the next state, for one
            replica.
        state: Structure of tensors, of each replica its own.
        num_steps: Integer, or integer tensor.
        *args: What stays fixed, of each replica its own.
    """

    def placed(state: Any, index: tf.Tensor, *args: Any) -> Any:
        return tf.nest.map_structure(_here, step(state, index, *args))

    def run(one: Callable) -> Any:
        return run_steps(
            lambda state, index: call(one, state, index, *args),
            state,
            num_steps,
        )

    if tf.executing_eagerly():  # where a tensor stays where it was made
        return run(step)
    # A function of the operation: public only in the older interface.
    with tf.compat.v1.device(_device_of):
        return run(placed)


def _here(x: Any) -> Any:
    """The tensor, known to be on this replica's device if it came so far."""
    return x.identity() if isinstance(x, tf.TensorArray) else tf.identity(x)


def _device_of(operation: tf.Operation) -> str:
    """The device of an operation; of one that only passes on, its input's."""
    if operation.type == "Identity" and not operation.device:
        return operation.inputs[0].device
    return operation.device
