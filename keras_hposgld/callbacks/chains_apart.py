"""Chains on copies of a model's weights, for a callback of its `fit`."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld import samplers
from keras_hposgld.callbacks.chains import Chains
from keras_hposgld.callbacks.recent_examples import RecentExamples
from keras_hposgld.callbacks.recording_step import record
from keras_hposgld.callbacks.recording_step import stop_recording
from keras_hposgld.hyperparameters.discovery import variables_of
from keras_hposgld.samplers import SGLD
from keras_hposgld.training import keras_problem
from keras_hposgld.training import placement
from keras_hposgld.training.kept_trace import compiled_state
from keras_hposgld.training.kept_trace import KeptTrace
from keras_hposgld.training.outer_iteration import run_outer_iteration

EVERY = 50  # by default


class ChainsApart(Chains):
    """Runs chains beside the training of a model, and learns from them.

    Args:
        estimator: As in `LearnHyperparameters`, like all of them.
        hyper_optimizer: Likewise.
        sampler: Likewise.
        every: Likewise.
        inner_data: Likewise.
        outer_data: Likewise.
        **arguments: The other ones of `Chains`.
    """

    def __init__(
        self,
        estimator: Any,
        hyper_optimizer: Any,
        *,
        sampler: Any,
        every: Any,
        inner_data: Any,
        outer_data: Any,
        **arguments: Any,
    ):
        super().__init__(
            "hpo_sgld" if estimator is None else estimator,
            hyper_optimizer,
            every=EVERY if every == "auto" else every,
            data={"inner_data": inner_data, "outer_data": outer_data},
            **arguments,
        )
        self.sampler = samplers.get(SGLD(0.01) if sampler is None else sampler)
        self.inner_data = inner_data
        self._trace = KeptTrace()
        self.recent = RecentExamples(self.num_steps * self.batch_size)

    @property
    def needs_recording(self) -> bool:
        """Whether the chains run on the examples that `fit` trained on last."""
        return self.inner_data is None

    @property
    def are_ready(self) -> bool:
        """Whether there are enough examples for a chain."""
        return not self.needs_recording or self.recent.is_full

    def begin(self, model: keras.Model, owners: list) -> None:
        """See `Chains.begin`."""
        super().begin(model, owners)
        self.placement = placement.of_model(model)
        if self.needs_recording:
            self.placement.check_recording()
        with model.distribute_strategy.scope():
            self.outer_level.prepare(model, owners, self.sampler)
        if self.outer_level.read(self.data.levels[-1], self.num_steps):
            self._trace.forget()
        self.placement.check(
            [
                *model.variables,
                *self.outer_level.weights,
                self.sampler.keras_optimizer().iterations,
                self.outer_level.hyper_optimizer.iterations,
            ],
            self.outer_level.estimator,
        )
        self._run = self._trace.get(
            [*compiled_state(model), *self.outer_level.observers],
            lambda: self._chain_function(model, variables_of(owners)),
        )
        self.end(model)  # of a `fit` that was broken off
        if self.needs_recording:
            compiled = model.jit_compile and not model.run_eagerly
            self.recent.is_compiled = bool(compiled)
            record(model, self.recent.write)

    def end(self, model: keras.Model) -> None:
        """Leaves the model as it was."""
        stop_recording(model, self.recent.write)

    def _chain_function(self, model, hyperparameters):
        outer_level = self.outer_level

        def run_chain(inner_batches, outer_batches):
            problem = keras_problem.KerasProblem(
                model,
                hyperparameters,
                keras_problem.layer_variables(model),
                outer_level.loss(model),
                outer_level.layer_state,
                tracks_metrics=False,
            )
            run_outer_iteration(
                outer_level,
                problem,
                inner_batches,
                outer_batches,
                start=problem.weights,
                sampler=self.sampler,
                placement=self.placement,
                moves=False,
            )

        if model.run_eagerly:
            return run_chain
        # Batches may differ in length from chain to chain.
        return tf.function(run_chain, autograph=False, reduce_retracing=True)

    def draw(self) -> None:
        """Starts to draw batches, from where the last chain ended."""
        first = self.num_done
        self._num_drawn = 0
        # Pairs of stacked inner and outer batches, or the outer ones alone.
        self.batches = iter(
            self.placement.chains(
                lambda: self.data.chains(self.num_steps, lambda: first),
                self.data.batch_sizes,
            )
        )

    def before(self) -> None:
        """What there is to do before a batch of `fit`: nothing."""

    def after(self, before: int, now: int) -> None:
        """Runs a chain, if one is due, and learns from it; see `Chains`.

        Raises:
            RuntimeError: Also if the outer data have come to their end.
            ValueError: If a batch is not like the first one.
        """
        is_due = now // self.every > before // self.every
        if not is_due or now < self.warmup_batches or not self.are_ready:
            return
        with self.data.explains_its_end(lambda: self._num_drawn):
            batches = next(self.batches)
        self._num_drawn += 1
        if self.needs_recording:
            batches = self.recent.stacked(self.num_steps), *batches
        self._run(*batches)
        self.outer_level.guard.raise_if_too_many()

    def state(self, model: keras.Model, owners: list) -> tf.Module:
        """See `Chains.state`."""
        module = super().state(model, owners)
        module.recent = self.recent
        return module
