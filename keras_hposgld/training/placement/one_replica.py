"""One replica: what `Replicas` does, where nothing has to be divided."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.estimators.driver import LocalRunner
from keras_hposgld.estimators.driver import run_chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.training.placement import checks


class OneReplica(LocalRunner):
    """Runs everything where the caller is.

    The methods are those of `Replicas`, where their arguments are described.

    Args:
        strategy: `tf.distribute.OneDeviceStrategy`, or `None`.
    """

    num_replicas = 1

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        self.strategy = strategy

    def run_chain(
        self,
        estimator: HypergradientEstimator,
        make_chain: Callable,
        start: Callable,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Estimate:
        """Runs a chain."""
        return run_chain(
            estimator,
            make_chain(self.average),
            start(),
            inner_batches,
            outer_batches,
            runner=self,
        )

    def average(self, tensors: list) -> list:
        """The tensors themselves."""
        return tensors

    def mean(self, values: Any) -> Any:
        """The values themselves."""
        return values

    def sum(self, function: Callable, batch: Any) -> Any:
        """The function of the whole batch."""
        return function(batch)

    def apply(
        self,
        optimizer: keras.optimizers.Optimizer,
        gradients: list,
        variables: list,
    ) -> None:
        """One step of an optimizer."""
        optimizer.apply(gradients, variables)

    def own_variable(self, value: tf.Tensor, shape: Any = None) -> tf.Variable:
        """A variable."""
        scope = self.strategy.scope() if self.strategy else nullcontext()
        with scope:
            return tf.Variable(value, trainable=False, shape=shape)

    def first(self, value: Any) -> Any:
        """The value itself."""
        return value

    def subtract(self, variables: list, amounts: list) -> None:
        """Takes amounts off variables, within a step; `None` for nothing."""
        for variable, amount in zip(variables, amounts, strict=True):
            if amount is not None:
                variable.value.assign_sub(amount)

    def outside(self, function: Callable, *args: Any) -> None:
        """Calls a function within a step."""
        function(*args)

    def assign_shares(self, variables: list, values: list) -> None:
        """Assigns values to variables."""
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def chains(
        self, make_dataset: Callable, batch_sizes: dict
    ) -> tf.data.Dataset:
        """The dataset as it is made."""
        return make_dataset()

    def agreed(self, number: int) -> int:
        """The number itself."""
        return number

    def step_function(
        self, model: keras.Model, step: Callable, plain: Callable
    ) -> Callable:
        """The function that Keras makes."""
        return plain

    def check(
        self,
        variables: list,
        estimator: HypergradientEstimator | None,
        jit_compile: Any = "auto",
        steps_per_execution: int = 1,
    ) -> None:
        """Checks that the variables were made under no other strategy."""
        checks.check_scope(variables, None, self.strategy)

    def check_recording(self) -> None:
        """Accepts: the replica sees the whole batch."""
