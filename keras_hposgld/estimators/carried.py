"""What a chain carries beside its weights, as something to differentiate.

The inner objective may hand floating-point tensors from step to step, such as
the moving statistics of batch normalization, which depend on the weights of the
steps before. The estimators that unroll a chain are exact only if they follow
that way, too. Each replica carries its own tensors, so that derivatives by them
are those of one replica.
"""

from typing import Any

import tensorflow as tf

from keras_hposgld.core.problem import BilevelProblem


def floats(problem: BilevelProblem, carry: Any) -> list:
    """The tensors of a carry that derivatives go through."""
    leaves = tf.nest.flatten(carry)
    passes = problem.passes_derivatives(carry)
    return [x for x, counts in zip(leaves, passes, strict=True) if counts]


def with_floats(problem: BilevelProblem, carry: Any, values: list) -> Any:
    """The carry with other tensors in the place of its `floats`."""
    given = iter(values)
    leaves = tf.nest.flatten(carry)
    passes = problem.passes_derivatives(carry)
    return tf.nest.pack_sequence_as(
        carry,
        [
            next(given) if counts else x
            for x, counts in zip(leaves, passes, strict=True)
        ],
    )


def sources(problem: BilevelProblem, carry: Any) -> tuple[list, Any]:
    """The `floats` as tensors of their own, and the carry with them.

    Of their own, since a tape could not tell them from weights or
    hyperparameters that are the same tensors.
    """
    own = [tf.identity(x) for x in floats(problem, carry)]
    return own, with_floats(problem, carry, own)
