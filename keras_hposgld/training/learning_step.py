"""A training step of `fit` that is also the step of a chain.

Keras takes the step (`StepOfFit`); the estimator's own `step` is called around
it, with a chain that Keras moves (`ChainOfFit`). After the last step of a chain
the hyperparameters move, and the next chain begins with the next batch.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.hyperparameters.discovery import variables_of
from keras_hposgld.samplers import Sampler
from keras_hposgld.training.chain_of_fit import ChainOfFit
from keras_hposgld.training.chain_of_fit import KeptState
from keras_hposgld.training.kept_trace import compiled_state
from keras_hposgld.training.kept_trace import KeptTrace
from keras_hposgld.training.keras_problem import KerasProblem
from keras_hposgld.training.keras_problem import layer_variables
from keras_hposgld.training.keras_problem import tensors
from keras_hposgld.training.outer_level import OuterLevel
from keras_hposgld.training.placement import Placement
from keras_hposgld.training.step_of_fit import StepOfFit


class LearningStep(tf.Module):
    """Takes the place of a model's `train_step` for the time of a `fit`.

    Args:
        model: Compiled and built `keras.Model`.
        owners: The objects that own its hyperparameters.
        outer_level: `OuterLevel`, prepared.
        sampler: `Sampler` of the model's optimizer.
        placement: `OneReplica` or `Replicas`.
        every: Integer, the steps from the end of one chain to that of the
            next. A chain are the last of them.
        warmup: Integer: no hyperparameter moves before so many steps.

    Attributes:
        count: Variable, the steps taken so far.
        limit: Variable: from this step on no hyperparameter moves, until it
            is raised. So a `fit` that was broken off does not go on learning in
            the next one.
        kept: `KeptState`, what the estimator keeps from step to step.
        trace: `KeptTrace`, of the step.
        outer_batch: Function from the number of a chain, and that of a batch
            in it, to the batch.
    """

    outer_batch: Callable

    def __init__(
        self,
        model: keras.Model,
        owners: list,
        outer_level: OuterLevel,
        sampler: Sampler,
        placement: Placement,
        every: int,
        warmup: int = 0,
    ):
        super().__init__()
        self._parts = lambda: (model, outer_level, sampler, placement)
        self.trace = KeptTrace()
        self._hyperparameters = tuple(variables_of(owners))
        self._through_layers = not all(o.is_about_weights for o in owners)
        self.every, self.warmup = every, warmup
        self.count, self.limit = (
            tf.Variable(
                0,
                trainable=False,
                dtype=tf.int64,
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )
            for _ in range(2)
        )
        problem = self._problem()
        self.kept = KeptState(
            outer_level.estimator.init(
                self._chain(problem, 0), tensors(problem.weights)
            ),
            placement,
        )

    def install(self) -> None:
        """Puts itself in the place of the model's step."""
        model, outer_level, _, placement = self._parts()
        leftover = vars(model).get("train_step")
        if isinstance(leftover, LearningStep):  # of a `fit` that was broken off
            leftover.remove()
        step = StepOfFit(
            model, placement, self._decay_function(), self._through_layers
        )
        before = model.train_step, model.train_function
        self._installed = lambda: (step, *before)
        step.install()
        vars(model)["train_step"] = self
        depends_on = [
            *compiled_state(model),
            self.outer_batch,
            *outer_level.observers,
        ]

        def make() -> Callable:
            model.make_train_function(force=True)
            return model.train_function

        model.train_function = self.trace.get(depends_on, make)

    def remove(self) -> None:
        """Leaves the model as it was."""
        model, *_ = self._parts()
        if vars(model).get("train_step") is not self:
            return  # another one has done it
        step, _, train_function = self._installed()
        step.remove()
        # The instance's own attribute hides the method of the class.
        del vars(model)["train_step"]
        model.train_function = train_function

    def __call__(self, data: Any) -> Any:
        """Takes the step, on the batch of a replica."""
        _, outer_level, sampler, placement = self._parts()
        step, train_step, _ = self._installed()
        estimator = outer_level.estimator
        count = self.count.value()
        chain_number, position = count // self.every, count % self.every
        index = tf.maximum(position - (self.every - estimator.num_steps), 0)

        problem = self._problem()
        before = tf.convert_to_tensor(sampler.keras_optimizer().iterations)
        chain = self._chain(problem, before).with_steps(
            lambda sources: step.take(train_step, data, sources)
        )
        state = estimator.step(
            chain,
            self.kept.into(
                lambda: estimator.init(chain, tensors(problem.weights)),
                index == 0,
            ),
            tf.cast(index, tf.int32),
            None,
            self.outer_batch(chain_number, self._place(estimator, index)),
        )
        is_taken = chain.taken.is_taken
        _if(is_taken, lambda: self.kept.keep(state))
        self.count.assign_add(tf.cast(is_taken, tf.int64))

        def learn(is_end: tf.Tensor, is_warm: tf.Tensor, state: Any) -> None:
            def update() -> None:
                estimate = estimator.finish(chain, state, None, None)
                outer_level.learn_from(
                    estimate._replace(standard_error=None),
                    problem,
                    placement,
                    sampler,
                    before,
                    only_if=is_warm if self.warmup else None,
                )

            tf.cond(is_end, update, lambda: None)

        placement.outside(
            learn,
            is_taken
            & (position == self.every - 1)
            & (count < self.limit.value()),
            count + 1 >= self.warmup,
            state,
        )
        return chain.taken.logs

    @staticmethod
    def _place(estimator: Any, index: tf.Tensor) -> tf.Tensor:
        """Which of a chain's outer batches a step takes, if it takes one."""
        from_end = estimator.num_steps - 1 - index
        return num_outer(estimator) - 1 - from_end // estimator.outer_every

    def _problem(self) -> KerasProblem:
        model, outer_level, *_ = self._parts()
        return KerasProblem(
            model,
            list(self._hyperparameters),
            layer_variables(model),
            outer_level.loss(model),
            tracks_metrics=False,
        )

    def _chain(self, problem: KerasProblem, first_step: Any) -> ChainOfFit:
        _, outer_level, sampler, placement = self._parts()
        return ChainOfFit(
            problem,
            tensors(problem.hyperparameters),
            sampler,
            first_step=first_step,
            seed=sampler.chain_seed,
            kept=tensors(outer_level.kept),
            names=tuple(v.path for v in problem.hyperparameters),
            average=placement.average,
        )

    def _decay_function(self) -> Callable | None:
        problem = self._problem()
        if problem.decay is None:
            return None
        _, _, sampler, _ = self._parts()

        def amounts(weights: list) -> list:
            decay = problem.decay_of(tensors(problem.hyperparameters), weights)
            step = tf.convert_to_tensor(sampler.keras_optimizer().iterations)
            return [
                None
                if part is None
                else part * sampler.learning_rate_at(step, part.dtype)
                for part in decay
            ]

        return amounts


def _if(condition: Any, function: Callable) -> None:
    """Calls a function if a condition holds, which may be known by now."""
    if condition is True:
        function()
    else:
        tf.cond(condition, function, lambda: None)


def num_outer(estimator: Any) -> int:
    """How many outer gradients an estimator takes in a chain."""
    return -(-estimator.num_steps // estimator.outer_every)
