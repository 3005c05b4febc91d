"""A chain whose steps are those of a `fit`: Keras takes them.

An estimator asks a `Chain` for the gradient of a step, for products with its
derivatives, and to move the weights. Here Keras has done both at once, one
batch after the other, and the chain says what came of it. What an estimator
keeps from step to step lies in variables (`KeptState`).
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.core.vectors import scaled
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.position import Position
from keras_hposgld.training.keras_problem import KerasProblem
from keras_hposgld.training.keras_problem import tensors
from keras_hposgld.training.placement import Placement
from keras_hposgld.training.step_of_fit import TakenStep


class ChainOfFit(Chain):
    """A `Chain` that Keras moves; its `first_step` is the step of now.

    Attributes:
        take: Function from a list of variables, by which the gradient is to
            be differentiated, to the `TakenStep`.
        taken: `TakenStep`, once the step was taken.
    """

    problem: KerasProblem
    take: Callable
    taken: TakenStep

    def with_steps(self, take: Callable) -> "ChainOfFit":
        """Says how a step is taken."""
        self.take = take
        return self

    def begin(self, params: list) -> Position:
        """Where the weights are now."""
        return self.here([])

    def here(self, unprojected: list) -> Position:
        """Where the weights are now, and the state of optimizer and layers."""
        slots = self.sampler.state_variables.items()
        weights = tensors(self.problem.weights)
        state = {name: tensors(variables) for name, variables in slots}
        return Position(
            weights,
            self.problem.initial_carry,
            self.with_curvature(state, weights),
            unprojected,
        )

    def number(self, index: Any) -> tf.Tensor:
        """The steps that the optimizer took before this one."""
        return tf.cast(self.first_step, tf.int64)

    def linearize(
        self,
        position: Position,
        batch: Any,
        sources: list,
        through_carry: bool = False,
    ) -> LinearizedGradient:
        """Lets Keras take the step; the gradient is that of one replica."""
        variables = self.problem.hyperparameters
        if len(sources) > len(variables):  # and by the weights
            variables = [*variables, *self.problem.weights]
        self.taken = self.take(variables)
        # Keras sums what the replicas have, where a chain takes their mean.
        number = tf.distribute.get_strategy().num_replicas_in_sync

        def pullback(vector: list) -> list:
            products = self.taken.pullback(vector)
            return products if number == 1 else scaled(number, products)

        return LinearizedGradient(
            tf.zeros([], position.params[0].dtype),  # Keras has it in its logs
            self.problem.initial_carry,
            self.taken.gradient,
            pullback,
        )

    def move(
        self, position: Position, inner: LinearizedGradient, index: Any
    ) -> Position:
        """Where Keras has moved the weights."""
        return self.here(self.taken.unprojected)


class KeptState(tf.Module):
    """Variables for what an estimator keeps from one step of `fit` to the next.

    Position and error are not kept: the one is in the model, the other of no
    use without a whole chain. Of what is kept each replica has its own.

    Args:
        state: What `estimator.init` returned.
        placement: `OneReplica` or `Replicas`.
    """

    def __init__(self, state: Any, placement: Placement):
        super().__init__()
        leaves = tf.nest.flatten(_kept(state))
        self.leaves = [placement.own_variable(leaf) for leaf in leaves]

    def into(self, make: Callable, is_new: tf.Tensor) -> Any:
        """The state before a step.

        Args:
            make: Function without arguments, `estimator.init`.
            is_new: Boolean tensor: whether a chain begins. The last outer
                gradient stays in any case.
        """
        fresh = make()
        number = len(tf.nest.flatten(fresh.outer))

        def begin() -> None:
            # Made here, so that other steps need no memory for it.
            leaves = tf.nest.flatten(_kept(make())[1:])
            for variable, leaf in zip(
                self.leaves[number:], leaves, strict=True
            ):
                variable.assign(leaf)

        tf.cond(is_new, begin, lambda: None)
        outer, own, h, losses = tf.nest.pack_sequence_as(
            _kept(fresh), [variable.value() for variable in self.leaves]
        )
        return fresh._replace(own=own, h=h, outer=outer, losses=losses)

    def keep(self, state: Any) -> None:
        """Writes down the state after a step."""
        leaves = tf.nest.flatten(_kept(state))
        for variable, leaf in zip(self.leaves, leaves, strict=True):
            variable.assign(leaf)


def _kept(state: Any) -> tuple:
    return state.outer, state.own, state.h, state.losses
