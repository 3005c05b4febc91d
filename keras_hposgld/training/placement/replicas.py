"""Several devices and several machines: the one place that names them.

An outer iteration is the same computation on any number of replicas. Each
replica has all of the weights and hyperparameters and a share of each batch;
what an estimator takes from a batch is averaged over the replicas as soon as
it has been computed (`Chain.average`), so that all of them move alike:

* the gradient of the inner objective, before it is clipped;
* the gradient v of the outer objective, before it meets the mixed derivative;
* the products with second derivatives, and the losses.

As every replica adds the whole regularization to its share of the loss, a mean
counts it once. The noise is made from the same seed everywhere.

Two facts of TensorFlow shape the rest. Replicas cannot average inside of a
loop of their own, so the loop over the inner steps stands outside, and each
step is one `strategy.run`. And a Keras loss divides by the number of replicas,
since Keras sums gradients: `on_replica.local_loss` takes that back.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.estimators.driver import run_chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.samplers.clipping import clip_as
from keras_hposgld.training.placement import checks
from keras_hposgld.training.placement.batch_shares import distribute_chains
from keras_hposgld.training.placement.on_replica import mean_over_replicas
from keras_hposgld.training.placement.replica_loop import run_steps_around


class Replicas:
    """Runs everything on the replicas of a strategy.

    `OneReplica` has the same public methods.

    Args:
        strategy: `tf.distribute.Strategy`.

    Attributes:
        strategy: As given.
        num_replicas: Integer, on all machines together.
        averages_in_loops: Whether replicas can average in loops of their own.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.num_replicas = strategy.num_replicas_in_sync
        self.averages_in_loops = isinstance(strategy, tf.distribute.TPUStrategy)

    def call(self, function: Callable, *args: Any) -> Any:
        """What a function gives on each replica, from its part of the args."""
        return self.strategy.run(function, args=args)

    def loop(
        self, step: Callable, state: Any, num_steps: Any, *args: Any
    ) -> Any:
        """As in `LocalRunner`; the loop stands outside of the replicas."""
        return run_steps_around(self.call, step, state, num_steps, *args)

    def run_chain(
        self,
        estimator: HypergradientEstimator,
        make_chain: Callable,
        start: Callable,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Estimate:
        """Runs a chain.

        Args:
            estimator: `HypergradientEstimator`.
            make_chain: Function from the `average` of a `Chain` to the chain.
                It is called on each replica, whose own variables it reads.
            start: Function without arguments to the weights where the chain
                starts. It is called on each replica, too.
            inner_batches: Stacked batches, of each replica its own.
            outer_batches: Stacked batches, of each replica its own.

        Returns:
            `Estimate` in ordinary tensors, except for the metrics in its
            `carry`, of which each replica has a share.
        """
        batches = (inner_batches, outer_batches)

        def begin() -> tuple:
            return make_chain(self.average), start()

        def run_whole(*batches: Any) -> Estimate:
            return run_chain(estimator, *begin(), *batches)

        if self.averages_in_loops:
            estimate = self.call(run_whole, *batches)
        else:
            chain, params = self.call(begin)
            estimate = run_chain(
                estimator, chain, params, *batches, runner=self
            )
        layer_state, metrics_state = estimate.carry
        estimate = tf.nest.map_structure(
            self.first, estimate._replace(carry=())
        )
        return estimate._replace(carry=(self.mean(layer_state), metrics_state))

    def average(self, tensors: list) -> list:
        """The means over the replicas, called on each of them."""
        if self.num_replicas == 1:  # which may so average inside of any loop
            return tensors
        return mean_over_replicas(tensors)

    def mean(self, values: Any) -> Any:
        """The means of what the replicas have, called outside of them.

        Args:
            values: Structure of tensors, of each replica its own. Integers,
                such as the counters of dropout, are the same on all.
        """

        def one(value: Any) -> tf.Tensor:
            if not self.first(value).dtype.is_floating:
                return self.first(value)
            mean = tf.distribute.ReduceOp.MEAN
            return self.strategy.reduce(mean, value, axis=None)

        return tf.nest.map_structure(one, values)

    def own_variable(self, value: tf.Tensor, shape: Any = None) -> tf.Variable:
        """A variable of which each replica has a value of its own.

        Args:
            value: Tensor, what all of them have at first.
            shape: The shape, if it may change. `None` (default): that of the
                value.
        """
        # What a file holds of them.
        name = "MEAN" if value.dtype.is_floating else "ONLY_FIRST_REPLICA"
        with self.strategy.scope():
            return tf.Variable(
                value,
                trainable=False,
                shape=shape,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=getattr(tf.VariableAggregation, name),
            )

    def first(self, value: Any) -> Any:
        """What the first replica has."""
        if value is None:
            return None
        return self.strategy.experimental_local_results(value)[0]

    def sum(self, function: Callable, batch: Any) -> Any:
        """Sums what a function gives for each replica's part of a batch.

        Args:
            function: Function from a batch to a structure of tensors.
            batch: Structure of tensors, of each replica its own.
        """
        total = tf.distribute.ReduceOp.SUM
        return tf.nest.map_structure(
            lambda x: self.strategy.reduce(total, x, axis=None),
            self.call(function, batch),
        )

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: list,
        variables: list,
    ) -> None:
        """One step of an optimizer, with gradients that all replicas share."""
        # Keras clips what a replica has, and then sums over the replicas.
        # Clipped before, the shares are no longer changed by it.
        gradients = clip_as(optimizer, gradients)

        def step(gradients: list) -> None:
            # Divided on the replica's device: a sum needs to know devices.
            shares = [gradient / self.num_replicas for gradient in gradients]
            optimizer.apply(shares, variables)

        self.call(step, gradients)

    def subtract(self, variables: list, amounts: list) -> None:
        """Takes amounts off variables, within a step; `None` for nothing.

        Args:
            variables: List of `keras.Variable`s.
            amounts: List of tensors, the same on all replicas.
        """

        def update(strategy: tf.distribute.Strategy, amounts: list) -> None:
            for variable, amount in zip(variables, amounts, strict=True):
                if amount is not None:
                    strategy.extended.update(
                        variable.value,
                        lambda own, amount: own.assign_sub(amount),
                        args=(amount,),
                        group=False,
                    )

        tf.distribute.get_replica_context().merge_call(update, args=(amounts,))

    def outside(self, function: Callable, *args: Any) -> None:
        """Calls a function outside of the replicas, from within a step.

        Args:
            function: Function of tensors.
            *args: Structures of tensors that are the same on all replicas.
        """

        def call(strategy: tf.distribute.Strategy, *args: Any) -> None:
            function(*tf.nest.map_structure(self.first, args))

        tf.distribute.get_replica_context().merge_call(call, args=args)

    def assign_shares(self, variables: list, values: list) -> None:
        """Assigns to metrics what each replica has of them."""

        def assign(values: list) -> None:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

        self.call(assign, values)

    def chains(
        self, make_dataset: Callable, batch_sizes: dict
    ) -> tf.data.Dataset:
        """Gives each replica its part of every batch of a chain.

        Args:
            make_dataset: Function without arguments to a dataset of stacked
                batches, see `distribute_chains`.
            batch_sizes: Dictionary from the name of data to the batch size.

        Raises:
            ValueError: If a batch cannot be divided.
        """
        checks.check_version()
        checks.check_divisible(batch_sizes, self.num_replicas)
        return distribute_chains(self.strategy, make_dataset)

    def agreed(self, number: int) -> int:
        """An integer that all processes have: that of the first one."""
        with self.strategy.scope():  # where a variable starts alike everywhere
            return int(tf.Variable(number, dtype=tf.int64).numpy())

    def step_function(
        self, model: keras.Model, step: Callable, plain: Callable
    ) -> Callable:
        """What Keras calls with an iterator, for a step that spans replicas.

        Args:
            model: `keras.Model`, compiled.
            step: Function of a batch, called outside of the replicas.
            plain: Keras's own, which calls a step on each replica. Not used.
        """

        @tf.autograph.experimental.do_not_convert
        def function(iterator: Any) -> Any:
            return step(next(iterator))

        if model.run_eagerly:
            return function
        return tf.function(function, reduce_retracing=True)

    def check(
        self,
        variables: list,
        estimator: HypergradientEstimator | None,
        jit_compile: Any = "auto",
        steps_per_execution: int = 1,
    ) -> None:
        """Checks that a model can be trained here.

        Args:
            variables: List of `keras.Variable`s, of models and optimizers.
            estimator: `HypergradientEstimator`; `None` where its chains do not
                span the replicas.
            jit_compile: The argument of `compile`.
            steps_per_execution: The argument of `compile`.

        Raises:
            ValueError: If a variable was made outside of the strategy's scope,
                or if the estimator or the compilation does not serve replicas.
        """
        checks.check_scope(variables, self.strategy, self.strategy)
        if estimator is not None:
            checks.check_estimator(estimator, self.num_replicas)
        checks.check_compilation(
            jit_compile, steps_per_execution, self.num_replicas
        )

    def check_recording(self) -> None:
        """Refuses to record the batches of `fit`."""
        checks.refuse_recording(self.num_replicas)
