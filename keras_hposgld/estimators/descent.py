"""The chain without a recursion: what IFT and RMD run before they look back.

A state holds no more than the weights and what the inner objective carries.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import linearize_gradient
from keras_hposgld.core.derivatives import value_and_gradients
from keras_hposgld.core.loop import run_pooling_steps
from keras_hposgld.estimators.estimator import batch_at
from keras_hposgld.estimators.estimator import Chain


class DescentState(NamedTuple):
    """Where the chain is, and the inner objective where its step began."""

    params: list
    carry: Any
    inner_loss: tf.Tensor


def start(chain: Chain, params: list) -> DescentState:
    """The state before the first step."""
    return DescentState(
        params, chain.problem.initial_carry, tf.zeros([], params[0].dtype)
    )


def descend(chain: Chain, state, index, inner_batch) -> DescentState:
    """The state after one more step."""
    inner = linearize_inner(
        chain, state.params, state.carry, inner_batch, sources=[]
    )
    return DescentState(
        chain.move(state.params, inner.gradient, index),
        inner.carry,
        tf.cast(inner.value, state.inner_loss.dtype),
    )


def run(chain: Chain, params: list, num_steps: Any) -> DescentState:
    """The state after some steps, without batches of data."""
    return run_pooling_steps(
        lambda state, index: descend(chain, state, index, None),
        start(chain, params),
        num_steps,
    )


def linearize_inner(chain: Chain, params, carry, inner_batch, sources):
    """The gradient that a step follows, ready to be differentiated."""
    return linearize_gradient(
        lambda params: chain.problem.inner(
            chain.hyperparameters, params, inner_batch, carry
        ),
        params,
        sources,
        chain.settle,
        chain.problem.loss_scale,
    )


def outer_at_end(chain: Chain, state: DescentState, outer_batches, num_steps):
    """The outer objective where the chain ended, with both its derivatives."""
    last = batch_at(outer_batches, num_steps - 1)
    return value_and_gradients(
        lambda params: chain.problem.outer(
            chain.hyperparameters, params, last, state.carry
        ),
        chain.hyperparameters,
        state.params,
        chain.problem.loss_scale,
    )
