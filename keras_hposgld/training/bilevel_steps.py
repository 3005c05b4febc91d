"""The outer iterations of a `BilevelModel`: prepared, run, and their memory."""

import math
from typing import Any

import keras

from keras_hposgld.data.epochs import in_epochs
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.training import batch_count
from keras_hposgld.training import density
from keras_hposgld.training import exact_draws
from keras_hposgld.training import keras_problem
from keras_hposgld.training import temperature
from keras_hposgld.training.evidence_problem import EvidenceProblem
from keras_hposgld.training.first_chain import FirstChain
from keras_hposgld.training.fit_watch import WatchLearning
from keras_hposgld.training.folds import state_of_chain
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
        self.num_folds = learner.outer_folds or 1
        # What a `fit` changes of the sampler, as long as it lasts.
        self.settings: dict[str, float | None] = {}
        # What draws the weights of a `fit`, where it takes no steps.
        self.draws: exact_draws.ExactDraws | None = None

    def build(self, data: FitData) -> None:
        """Creates all variables for the data, and the first start."""
        learner = self.learner
        self.num_folds, copies = data.num_folds, learner.fold_copies
        before = list(map(id, copies.values))
        with learner.distribute_strategy.scope():
            keras_problem.build_on(learner, data.first_batch(), learner._weigh)
            self.prepare()
            if learner.hypergradient.needs_outer:
                self.settings = {}  # those of an evidence learned from before
            else:
                self._begin_evidence(data)
            self._choose_draws(data)
            if self.num_folds > 1:
                copies.begin(self._state_of_chain())
            else:
                self.drop_folds()
            if learner.start == "initial":
                learner.starting_weights.remember(learner.trainable_variables)
        if before != list(map(id, copies.values)):
            learner.train_function = None  # the old one has other chains

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
        self.build(data)
        num_steps, first = self.num_steps, FirstChain()
        num_outer = math.inf
        for outer in data.levels[1:]:  # none, if the training data judge
            num_outer = outer.num_known
            if learner.outer_level.read(outer, num_steps):
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
                    WatchLearning(num_outer, data.levels[0]),
                    exact_draws.SaysSo(self.draws),
                ],
                **arguments,
            )

    @property
    def num_steps(self) -> int:
        """The batches of a chain."""
        return (self.draws or self.learner.hypergradient).num_steps

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
        if not learner.hypergradient.needs_outer:
            density.give_priors(learner)
        owners = learner.find_hyperparameters()
        if not learner.hypergradient.needs_outer:
            density.check_density(learner, owners)
        learner.outer_level.prepare(learner.model, owners, learner.sampler)
        learner.step_sizes.build_for(learner.model, learner.sampler)
        if learner.start == "initial":
            learner.starting_weights.build_for(
                learner.trainable_variables, places_of(learner.model)
            )
        learner.posterior.build_for_samples(
            learner.trainable_variables, places_of(learner.model)
        )
        if self.num_folds > 1:
            learner.fold_copies.build_for_folds(
                self.num_folds, learner.model, self._state_of_chain()
            )
        learner.track_for_checkpoints()

    def drop_folds(self) -> None:
        """Forgets the folds, which frees the memory that they take."""
        learner = self.learner
        if learner.fold_copies.values:
            learner.fold_copies.build_for([], [])
            learner.train_function = None
            learner.track_for_checkpoints()

    def _state_of_chain(self) -> dict:
        learner = self.learner
        return state_of_chain(
            learner.trainable_variables,
            keras_problem.layer_variables(learner.model),
            learner.sampler,
            learner.outer_level.kept,
        )

    def _begin_evidence(self, data: FitData) -> None:
        """What is to be settled where the training data are to judge."""
        learner, level = self.learner, data.levels[0]
        own = temperature.of_posterior(learner.sampler, level)
        density.check_on_batch(learner, data.first_batch(), own is None)
        owners = learner.find_hyperparameters()
        settings = {
            "temperature": own,
            "momentum": temperature.momentum_for(
                learner.sampler, level, any(o.is_mixture for o in owners)
            ),
        }
        share = temperature.share_of_step(learner.sampler, level)
        if (settings, share) != (self.settings, learner.step_sizes.share):
            self.settings, learner.step_sizes.share = settings, share
            learner.train_function = None  # the old one has others
        with temperature.at(learner.sampler, **settings):
            learner.outer_level.own_rules.begin(learner.model, learner.sampler)
        learner.track_for_checkpoints()

    def _choose_draws(self, data: FitData) -> None:
        """Whether the weights are drawn, which a `fit` settles anew."""
        learner, before = self.learner, self.draws
        self.draws = exact_draws.choose(learner, data)
        if exact_draws.differ(before, self.draws):
            learner.train_function = None  # the old one moves them otherwise
            given = learner.plain_compile_arguments()
            learner.steps_per_execution = batch_count.chains_of(
                given.get("steps_per_execution", 1), self.num_steps
            )

    def run(self, inner_batches: Any, outer_batches: Any = None) -> None:
        """One outer iteration, on the stacked batches of one chain."""
        learner = self.learner
        outer_level = learner.outer_level
        mixes = (
            not learner.hypergradient.needs_outer
            and learner.sampler.solves_quadratic
        )
        kind = EvidenceProblem if mixes else keras_problem.KerasProblem
        problem = kind(
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
        copies = learner.fold_copies.values if self.num_folds > 1 else []
        with temperature.at(learner.sampler, **self.settings):
            skipped = run_outer_iteration(
                outer_level,
                problem,
                inner_batches,
                outer_batches,
                start=start,
                sampler=learner.sampler,
                placement=learner.placement,
                fold_copies=copies,
                step_sizes=learner.step_sizes,
                draws=self.draws,
            )
            if mixes:
                outer_level.own_rules.draw_latents(
                    outer_level, problem, learner.sampler
                )
        learner.posterior.follow(problem.weights, skipped, learner.placement)

    def memory_estimate(self) -> MemoryEstimate:
        """How many bytes a prepared learner is going to need."""
        learner = self.learner
        copies = [
            *learner.starting_weights.values,
            *learner.outer_level.kept_copies.values,
            *learner.fold_copies.values,
            *learner.step_sizes.directions.values,
        ]
        return estimate_memory(
            learner.trainable_variables,
            copies,
            learner.hyperparameters,
            learner.hyper_optimizer.variables,
            learner.hypergradient,
            learner.sampler,
            waiting=learner.fold_copies.values,
            samples=learner.posterior.values,
        )
