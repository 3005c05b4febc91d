"""The chain without a recursion: what IFT, RMD and FMD run before they look
back at it, or beside what they carry.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.core.loop import batch_at
from keras_hposgld.core.loop import run_pooling_steps
from keras_hposgld.estimators import carried
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.position import OuterGradient
from keras_hposgld.estimators.position import Position


class DescentState(NamedTuple):
    """Where the chain is, and the inner objective where its step began."""

    position: Position
    inner_loss: tf.Tensor


def start(chain: Chain, params: list) -> DescentState:
    """The state before the first step."""
    return DescentState(chain.begin(params), tf.zeros([], params[0].dtype))


def follow(
    chain: Chain, state: DescentState, inner: LinearizedGradient, index: Any
) -> DescentState:
    """The state after a step along a gradient that is known."""
    (value,) = chain.mean([inner.value])
    return DescentState(
        chain.move(state.position, inner, index),
        tf.cast(value, state.inner_loss.dtype),
    )


def descend(
    chain: Chain, state: DescentState, index: Any, inner_batch: Any
) -> DescentState:
    """The state after one more step."""
    inner = chain.linearize(state.position, inner_batch, sources=[])
    return follow(chain, state, inner, index)


def run(chain: Chain, params: list, num_steps: Any) -> DescentState:
    """The state after some steps, without batches of data."""
    return run_pooling_steps(
        lambda state, index: descend(chain, state, index, None),
        start(chain, params),
        num_steps,
    )


def outer_at_end(
    chain: Chain,
    position: Position,
    outer_batches: Any,
    num_steps: int,
    through_carry: bool = False,
) -> OuterGradient:
    """The outer objective where the chain ended, averaged over replicas.

    Args:
        chain: `Chain`.
        position: `Position` after the last step.
        outer_batches: Structure of tensors, stacked batches, or `None`.
        num_steps: Integer, the length of the chain.
        through_carry: Whether to differentiate by what was carried, too.
    """
    last = batch_at(outer_batches, num_steps - 1)
    carry: Any = position.carry
    by_carry: list = []
    if through_carry:
        by_carry, carry = carried.sources(chain.problem, carry)
    outer = chain.outer(position.params, carry, last, by_carry)
    (value,), direct, v = chain.mean([outer.value], outer.direct, outer.v)
    return outer._replace(value=value, direct=direct, v=v)


def fields_of(state: DescentState, outer_loss: tf.Tensor) -> dict:
    """What an estimate says of the chain itself."""
    return {
        "params": state.position.params,
        "carry": state.position.carry,
        "sampler_state": state.position.sampler_state,
        "inner_loss": state.inner_loss,
        "outer_loss": outer_loss,
    }
