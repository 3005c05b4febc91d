"""The outer iterations of a `BilevelModel`: prepared, run, and their memory."""

from typing import Any

import keras

from keras_hposgld.data.epochs import in_epochs
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.training import batch_count
from keras_hposgld.training import keras_problem
from keras_hposgld.training.first_chain import FirstChain
from keras_hposgld.training.fit_watch import WatchLearning
from keras_hposgld.training.memory_estimate import estimate_memory
from keras_hposgld.training.memory_estimate import MemoryEstimate
from keras_hposgld.training.memory_estimate import warn_if_too_much
from keras_hposgld.training.outer_iteration import run_outer_iteration
from keras_hposgld.training.weight_copies import places_of


class BilevelSteps:
    """Runs the outer iterations of a learner.

    Args:
        learner: A `BilevelModel`.
    """

    def __init__(self, learner: keras.Model):
        self.learner = learner

    def build(self, first_batch: Any) -> None:
        """Creates all variables from a first batch, and the first start."""
        learner = self.learner
        with learner.distribute_strategy.scope():
            keras_problem.build_on(learner, first_batch, learner._weigh)
            self.prepare()
            if learner.start == "initial":
                learner.starting_weights.remember(learner.trainable_variables)

    def fit(
        self,
        data: FitData,
        *,
        steps_per_epoch: int | None = None,
        **arguments: Any,
    ) -> keras.callbacks.History:
        """Keras's `fit` of the learner, on chains of batches.

        Args:
            data: `FitData`, of both levels.
            steps_per_epoch: Integer, batches; `None` for one pass over the
                inner data. Either is rounded up to whole chains.
            **arguments: As in `Learner.watched_fit`.
        """
        learner = self.learner
        self.build(data.first_batch())
        num_steps, first = learner.hypergradient.num_steps, FirstChain()
        if learner.outer_level.read(data.levels[-1], num_steps):
            learner.train_function = None  # the old one has another number
        warn_if_too_much(self.memory_estimate(), data.bytes_of(num_steps))
        chains = learner.placement.chains(
            lambda: data.chains(
                num_steps, first.number, not learner.jit_compile
            ),
            data.batch_sizes,
        )
        if steps_per_epoch is None:
            chains_per_epoch = data.chains_per_epoch(num_steps)
        else:
            chains_per_epoch = batch_count.chains_of_epoch(
                steps_per_epoch, num_steps
            )

        def num_drawn() -> int:
            return int(learner.outer_iterations.numpy()) - first.number()

        with data.explains_its_end(num_drawn):
            return learner.watched_fit(
                in_epochs(
                    chains, chains_per_epoch, learner.steps_per_execution
                ),
                num_steps=num_steps,
                steps_per_epoch=chains_per_epoch,
                validation_data=data.validation_data,
                shuffle=False,  # done already
                own_callbacks=[
                    first,
                    WatchLearning(data.levels[-1].num_known),
                ],
                **arguments,
            )

    def prepare(self) -> None:
        """Checks a built learner, and builds what depends on its weights."""
        learner = self.learner
        learner.placement.check(
            [
                *learner.model.variables,
                *learner.hyperparameters,
                learner.optimizer.iterations,
                learner.hyper_optimizer.iterations,
            ],
            learner.hypergradient,
            learner.jit_compile,
            learner.steps_per_execution,
        )
        learner.outer_level.prepare(
            learner.model, learner.find_hyperparameters(), learner.sampler
        )
        if learner.start == "initial":
            learner.starting_weights.build_for(
                learner.trainable_variables, places_of(learner.model)
            )
        learner.track_for_checkpoints()

    def run(self, inner_batches: Any, outer_batches: Any) -> None:
        """One outer iteration, on the stacked batches of one chain."""
        learner = self.learner
        outer_level = learner.outer_level
        problem = keras_problem.KerasProblem(
            learner,
            learner.hyperparameters,
            keras_problem.layer_variables(learner.model),
            outer_level.loss(learner),
            outer_level.layer_state,
            weigh=learner._weigh,
        )
        start = (
            problem.weights
            if learner.start == "continue"
            else learner.starting_weights.values
        )
        run_outer_iteration(
            outer_level,
            problem,
            inner_batches,
            outer_batches,
            start=start,
            sampler=learner.sampler,
            placement=learner.placement,
        )

    def memory_estimate(self) -> MemoryEstimate:
        """How many bytes a prepared learner is going to need."""
        learner = self.learner
        copies = [
            *learner.starting_weights.values,
            *learner.outer_level.memory.values,
        ]
        return estimate_memory(
            learner.trainable_variables,
            copies,
            learner.hyperparameters,
            learner.hyper_optimizer.variables,
            learner.hypergradient,
            learner.sampler,
        )
