"""The loop over the inner steps of a chain."""

import contextlib
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# oneDNN has a gradient of max pooling several times as fast as TensorFlow's.
# TensorFlow puts it in only where it meets the pooling before the gradient on
# its way through a graph, and in a loop, where there is no first and no last,
# it often meets them the other way round.
MAX_POOLING_GRADIENTS = {"MaxPoolGrad", "MaxPool3DGrad"}


@contextlib.contextmanager
def variable_scope_kept() -> Iterator[None]:
    """Undoes what `tf.map_fn` leaves behind when its function fails.

    In a graph it gives new variables a device to be cached on, and takes that
    back only at its end. After an error no strategy can make variables any
    more, in the whole process.
    """
    scope = tf.compat.v1.get_variable_scope()
    before = scope.caching_device
    try:
        yield
    except BaseException:
        if not tf.executing_eagerly():
            scope.set_caching_device(before)
        raise


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


def run_pooling_steps(step: Callable, state: Any, num_steps: Any) -> Any:
    """As `run_steps`, and fast on a CPU where the step has max pooling.

    Such a step becomes a graph of its own, which the loop calls. That costs
    half a copy of the weights more, so that no other step does.
    """
    if tf.executing_eagerly():
        return run_steps(step, state, num_steps)

    def refusing(state: Any, index: tf.Tensor) -> Any:
        state = step(state, index)
        if _pools_at_its_maximum(index.graph):
            raise _MaxPooling
        return state

    try:
        return run_steps(refusing, state, num_steps)
    except _MaxPooling:
        apart = tf.function(
            step,
            autograph=False,
            experimental_attributes={"_noinline": True},
        )
        return run_steps(apart, state, num_steps)


class _MaxPooling(Exception):
    """What was traced is to be traced in another way."""


def _pools_at_its_maximum(graph: tf.Graph) -> bool:
    """Whether the graph, or a function that it calls, has such a gradient."""
    definition = graph.as_graph_def()
    functions = definition.library.function
    nodes = [definition.node, *(function.node_def for function in functions)]
    return any(
        node.op in MAX_POOLING_GRADIENTS for part in nodes for node in part
    )


def batch_at(batches: Any, index: Any) -> Any:
    """The batch of one step, from stacked batches (or `None`).

    A stack of a single batch serves all steps, without a copy.
    """

    def part(stack: Any) -> Any:
        if stack is None:
            return None
        if stack.shape[0] == 1:
            return tf.squeeze(stack, 0)
        if stack.shape[0] is None:  # the replicas' data, whatever they hold
            single = tf.equal(tf.shape(stack)[0], 1)
            return tf.gather(stack, tf.where(single, 0, index))
        return tf.gather(stack, index)

    return tf.nest.map_structure(part, batches)
