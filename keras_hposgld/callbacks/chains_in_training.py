"""Chains whose steps are the training steps of `fit` themselves."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld.callbacks.chains import Chains
from keras_hposgld.callbacks.checks import check_chain_of_fit
from keras_hposgld.callbacks.outer_buffer import OuterBuffer
from keras_hposgld.estimators import HPOSGLD
from keras_hposgld.samplers import from_keras
from keras_hposgld.training import placement
from keras_hposgld.training.learning_step import LearningStep
from keras_hposgld.training.learning_step import num_outer
from keras_hposgld.training.step_of_fit import plain

NUM_STEPS = 5  # by default


class ChainsInTraining(Chains):
    """Learns from the steps that Keras takes, one batch after the other.

    Args:
        estimator: As in `LearnHyperparameters`, like all of them.
        hyper_optimizer: Likewise.
        every: Likewise.
        outer_data: Likewise.
        **arguments: The other ones of `Chains`.
    """

    sampler: Any = None

    def __init__(
        self,
        estimator: Any,
        hyper_optimizer: Any,
        *,
        every: Any,
        outer_data: Any,
        **arguments: Any,
    ):
        if estimator is None:
            steps = NUM_STEPS if every == "auto" else min(every, NUM_STEPS)
            estimator = HPOSGLD(0, steps, outer_every=steps)
        estimator = estimators.get(estimator)
        super().__init__(
            estimator,
            hyper_optimizer,
            every=estimator.num_steps if every == "auto" else every,
            data={"outer_data": outer_data},
            **arguments,
        )
        self.step: Any = None
        self._buffer: Any = None
        self._is_installed = False

    def begin(self, model: keras.Model, owners: list) -> None:
        """Makes the steps of a `fit` the steps of chains; see `Chains`."""
        self.end(model)  # of a `fit` that was broken off
        check_chain_of_fit(model)
        super().begin(model, owners)
        self.placement = placement.of_model(model)
        optimizer = plain(model.optimizer)
        if self.step is None or self.sampler.keras_optimizer() is not optimizer:
            # The model is new, or was compiled again: a chain begins.
            self.sampler, self.step = from_keras.of_training(optimizer), None
        with model.distribute_strategy.scope():
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            self.outer_level.prepare(model, owners, self.sampler)
            is_changed = self.outer_level.read(
                self.data.levels[-1], num_outer(self.outer_level.estimator)
            )
            self.placement.check(
                [
                    *model.variables,
                    *self.outer_level.weights,
                    *model.optimizer.variables,
                    self.outer_level.hyper_optimizer.iterations,
                ],
                self.outer_level.estimator,
                steps_per_execution=model.steps_per_execution,
            )
            if self.step is None:
                self.step = LearningStep(
                    model,
                    owners,
                    self.outer_level,
                    self.sampler,
                    self.placement,
                    self.every,
                    self.warmup_batches,
                )
        if is_changed:
            self.step.trace.forget()
        self._batches_at_once = model.steps_per_execution
        longest = (self._batches_at_once + self.every - 2) // self.every + 1
        varies = getattr(self.data.levels[0], "varies", False)
        self._buffer_size = longest, varies

    def end(self, model: keras.Model) -> None:
        """Leaves the model as it was."""
        if self._is_installed:
            self.step.remove()
        self._is_installed = False

    @property
    def num_taken(self) -> int:
        """The steps taken so far."""
        return int(self.step.count.numpy())

    def draw(self) -> None:
        """Starts to draw batches, from where the last chain ended."""
        first = self.num_taken // self.every
        self._num_drawn = first
        self._highest = self._next = self.num_taken
        number = num_outer(self.outer_level.estimator)
        self.batches = iter(
            self.placement.chains(
                lambda: self.data.chains(number, lambda: first),
                self.data.batch_sizes,
            )
        )
        batches = self._draw_one()
        if self._buffer is None or not self._buffer.serves(
            *self._buffer_size, batches
        ):
            self._buffer = OuterBuffer(*self._buffer_size, self.placement)
        self._lay_down(batches)
        self.step.outer_batch = self._buffer.batch
        self.step.install()
        self._is_installed = True

    def _draw_one(self) -> Any:
        """The outer batches of the next chain."""
        with self.data.explains_its_end(lambda: self._num_drawn):
            (batches,) = next(self.batches)
        return batches

    def _lay_down(self, batches: Any) -> None:
        """Lays down outer batches that the next steps may need."""
        self._buffer.put(self._num_drawn, batches)
        self._num_drawn += 1

    def before(self) -> None:
        """Prepares the next steps; how many have been taken is read rarely."""
        self._highest += self._batches_at_once
        if self._highest < self._next:
            return  # no chain begins or ends in these batches
        self._highest = self.num_taken + self._batches_at_once
        while self._highest > self._num_drawn * self.every:
            self._lay_down(self._draw_one())
        self.step.limit.assign(self._highest)
        begun, ended = divmod(self._highest, self.every)
        self._next = begun * self.every + (1 if ended == 0 else self.every)

    def after(self, before: int, now: int) -> None:
        """See `Chains.after`."""
        if now // self.every > before // self.every:
            self.outer_level.guard.raise_if_too_many()

    def state(self, model: keras.Model, owners: list) -> tf.Module:
        """See `Chains.state`."""
        module = super().state(model, owners)
        module.count = self.step.count
        module.kept = self.step.kept
        return module
