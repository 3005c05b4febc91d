"""The gradient of the outer objective along a chain, at each step or fewer.

With `outer_every=k` it is computed at the first step and at each k-th step
counted from the last, and taken for unchanged in between. That saves up to
half of the gradients of a step, and costs one more vector of the size of the
weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import value_and_gradients
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators.estimator import Chain


class OuterGradient(NamedTuple):
    """The outer objective with both its derivatives.

    Attributes:
        value: Scalar, f.
        direct: List like the hyperparameters, df/dlambda; `None` where there
            is no dependence.
        v: List like the params, df/dtheta.
    """

    value: tf.Tensor
    direct: list
    v: list


def unknown(chain: Chain, params: list, outer_every: int):
    """What to keep before the first step: nothing, if each computes anew."""
    if outer_every == 1:
        return ()
    return OuterGradient(
        tf.zeros([], params[0].dtype),
        zeros_like(chain.hyperparameters),
        zeros_like(params),
    )


def outer_gradient(
    chain: Chain,
    objective: Callable,
    params: list,
    last,
    index,
    num_steps: int,
    outer_every: int,
) -> tuple:
    """The outer gradient of a step, and what to keep for the next one.

    Args:
        chain: `Chain`.
        objective: Function `(params)` to the outer objective.
        params: List of tensors.
        last: What the step before kept, or `unknown`.
        index: Integer tensor, the number of the step.
        num_steps: Integer, the length of the chain.
        outer_every: Integer.
    """

    def compute():
        return OuterGradient(
            *value_and_gradients(
                objective,
                chain.hyperparameters,
                params,
                chain.problem.loss_scale,
            )
        )

    if outer_every == 1:
        return compute(), ()

    depends = [True] * len(chain.hyperparameters)

    def renew():
        now = compute()
        depends[:] = [gradient is not None for gradient in now.direct]
        return now._replace(
            value=tf.cast(now.value, last.value.dtype),
            direct=plus(zeros_like(chain.hyperparameters), now.direct),
        )

    from_end = num_steps - 1 - index
    is_due = (index == 0) | (from_end % outer_every == 0)
    now = tf.cond(is_due, renew, lambda: last)
    shown = [
        gradient if known else None
        for gradient, known in zip(now.direct, depends, strict=True)
    ]
    return now._replace(direct=shown), now
