"""The loop over the inner steps of a chain."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf


def run_steps(step: Callable, state: Any, num_steps: Any) -> Any:
    """The state after some steps, by one `tf.while_loop`.

    Args:
        step: Function of a state and the number of the step, from 0, to the
            next state.
        state: Structure of tensors.
        num_steps: Integer, or integer tensor.
    """
    _, state = tf.while_loop(
        lambda index, state: index < num_steps,
        lambda index, state: (index + 1, step(state, index)),
        (tf.constant(0), state),
        # The loop must not run ahead: each iteration in flight holds a copy
        # of the activations and the weights.
        parallel_iterations=1,
        maximum_iterations=num_steps,
    )
    return state
