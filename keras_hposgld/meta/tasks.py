"""The tasks of a meta-batch: a function applied to each, sums and means."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld.data.elements import as_batch
from keras_hposgld.training.placement.on_replica import replica_number

# How many tasks of a meta-batch may be computed at a time: each in flight
# holds its own weights and activations.
PARALLEL_TASKS = 8


def check_meta_batches(name: str, tasks: Any) -> None:
    """Checks that a dataset yields meta-batches.

    Raises:
        ValueError: If it does not, or is not a dataset.
    """
    if not isinstance(tasks, tf.data.Dataset):
        raise ValueError(
            f"`{name}` must be a `tf.data.Dataset` of meta-batches. "
            f"Received: {type(tasks).__name__}. Use "
            "`keras_hposgld.data.episodes`, or "
            "`tf.data.Dataset.from_tensor_slices(((x_support, y_support), "
            "(x_query, y_query))).batch(meta_batch_size)`."
        )
    spec = tasks.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2:
        raise ValueError(
            f"The elements of `{name}` must be "
            f"((x_support, y_support), (x_query, y_query)). Received: {spec}."
        )
    for part in spec:
        as_batch(name, part)


def over_tasks(function: Callable, tasks: Any, zeros: Any, spec: Any) -> tuple:
    """Applies a function to each task of a meta-batch, some at a time.

    Args:
        function: Function of a number and a task, to a structure of numbers
            to be summed and one to be stacked.
        tasks: Structure of tensors with a leading axis.
        zeros: Structure of the sums at first.
        spec: Structure of `KerasTensor`s like what is stacked.

    Returns:
        The number of tasks, the sums, and what was stacked.
    """
    number = tf.shape(tf.nest.flatten(tasks)[0])[0]
    first = number * replica_number()
    stacks = tf.nest.map_structure(
        lambda x: tf.TensorArray(x.dtype, number, element_shape=x.shape), spec
    )

    def body(index, sums, stacks):
        task = tf.nest.map_structure(lambda x: tf.gather(x, index), tasks)
        terms, parts = function(first + index, task)
        return (
            index + 1,
            tf.nest.map_structure(lambda a, b: a + b, sums, terms),
            tf.nest.map_structure(
                lambda stack, part: stack.write(index, part), stacks, parts
            ),
        )

    _, sums, stacks = tf.while_loop(
        lambda index, *_: index < number,
        body,
        (tf.constant(0), zeros, stacks),
        parallel_iterations=PARALLEL_TASKS,
        maximum_iterations=number,
    )
    return number, sums, tf.nest.map_structure(lambda s: s.stack(), stacks)


def summable(value: tf.Tensor) -> tf.Tensor:
    """A tensor in a dtype in which sums over tasks do not wrap around.

    The counters of random generators may be unsigned.
    """
    return value if value.dtype.is_floating else tf.cast(value, tf.int64)


def mean(sums: Any, number: tf.Tensor) -> Any:
    """Means from sums over tasks; integers are the same in all of them."""

    def one(total):
        count = tf.cast(number, total.dtype)
        return total // count if total.dtype.is_integer else total / count

    return tf.nest.map_structure(one, sums)


def flat(structure: Any) -> Any:
    """Merges the axes of tasks and of examples."""
    return tf.nest.map_structure(
        lambda x: (
            None
            if x is None
            else tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], 0))
        ),
        structure,
    )
