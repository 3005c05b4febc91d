"""Chains whose steps are the training steps of `fit` themselves."""

import weakref
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.callbacks.checks import check_chain_of_fit
from keras_hposgld.callbacks.learning_data import read_data
from keras_hposgld.callbacks.outer_buffer import OuterBuffer
from keras_hposgld.estimators import HPOSGLD
from keras_hposgld.hyperparameters.discovery import variables_of
from keras_hposgld.samplers import from_keras
from keras_hposgld.training import placement
from keras_hposgld.training.learning_step import LearningStep
from keras_hposgld.training.learning_step import num_outer
from keras_hposgld.training.outer_level import OuterLevel
from keras_hposgld.training.state import checkpointed
from keras_hposgld.training.state import state_of
from keras_hposgld.training.step_of_fit import plain

NUM_STEPS = 5  # by default


class ChainsInTraining:
    """Learns from the steps that Keras takes, one batch after the other.

    What it keeps from chain to chain belongs to one model and to its trainable
    weights of now; for others there is another object.

    Args:
        estimator: As in `LearnHyperparameters`, like all of them.
        hyper_optimizer: Likewise.
        every: Likewise.
        warmup_batches: Likewise.
        batch_size: Likewise.
        outer_data: Likewise.
        seed: Integer.
        **outer_arguments: Those of `OuterLevel.configure`.
    """

    def __init__(
        self,
        estimator: Any,
        hyper_optimizer: Any,
        *,
        every: Any,
        warmup_batches: int,
        batch_size: int,
        outer_data: Any,
        seed: int,
        **outer_arguments: Any,
    ):
        self.outer_level = OuterLevel()
        if estimator is None:
            steps = NUM_STEPS if every == "auto" else min(every, NUM_STEPS)
            estimator = HPOSGLD(0, steps, outer_every=steps)
        self.outer_level.configure(
            estimator, hyper_optimizer, **outer_arguments
        )
        self.every: int = self.num_steps if every == "auto" else every
        self.warmup_batches = warmup_batches
        self.batch_size = batch_size
        self.outer_data = outer_data
        self.seed = seed
        self.data: Any = None
        self.step: Any = None
        self.sampler: Any = None
        self._served: Any = None
        self._is_installed = False

    @property
    def num_steps(self) -> int:
        """The length of a chain."""
        return self.outer_level.estimator.num_steps

    def serves(self, model: keras.Model, owners: list) -> bool:
        """Whether its state belongs to a model as it is now."""
        return self._served in (None, identity_of(model, owners))

    def read_data(self, model: keras.Model) -> None:
        """Reads the outer data, once."""
        if self.data is None:
            self.data = read_data(
                {"outer_data": self.outer_data},
                model,
                self.outer_level,
                self.batch_size,
                self.seed,
            )

    def begin(self, model: keras.Model, owners: list) -> None:
        """Makes the steps of a `fit` the steps of chains.

        Args:
            model: Built and compiled `keras.Model`.
            owners: The objects that own its hyperparameters.
        """
        self.end(model)  # of a `fit` that was broken off
        check_chain_of_fit(model, self.num_steps, self.every)
        self._served = identity_of(model, owners)
        self.placement = placement.of_model(model)
        self.sampler = from_keras.of_training(plain(model.optimizer))
        with model.distribute_strategy.scope():
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
            self.outer_level.prepare(model, owners, self.sampler)
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
        self._batches_at_once = model.steps_per_execution
        longest = (self._batches_at_once + self.every - 2) // self.every + 1
        varies = getattr(self.data.levels[0], "varies", False)
        self._buffer = OuterBuffer(longest, varies, self.placement)
        self.step.outer_batch = self._buffer.batch
        self.batches: Any = None

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
        self._lay_down()
        self.step.install()
        self._is_installed = True

    def _lay_down(self) -> None:
        """Lays down the outer batches that the next steps may need."""
        with self.data.explains_its_end(lambda: self._num_drawn):
            (batches,) = next(self.batches)
        self._buffer.put(self._num_drawn, batches)
        self._num_drawn += 1

    def before(self) -> None:
        """Prepares the next steps; how many have been taken is read rarely."""
        self._highest += self._batches_at_once
        if self._highest < self._next:
            return  # no chain begins or ends in these batches
        self._highest = self.num_taken + self._batches_at_once
        while self._highest > self._num_drawn * self.every:
            self._lay_down()
        self.step.limit.assign(self._highest)
        begun, ended = divmod(self._highest, self.every)
        self._next = begun * self.every + (1 if ended == 0 else self.every)

    def after(self, before: int, now: int) -> int:
        """What there is to do after some batches of `fit`.

        Args:
            before: Integer, the batches before them.
            now: Integer, with them.

        Returns:
            The number of chains that have ended.
        """
        number = now // self.every - before // self.every
        if number:
            self.outer_level.guard.raise_if_too_many()
        return number

    def state(self, model: keras.Model, owners: list) -> tf.Module:
        """All that learning resumes from; the weights are in Keras's backup."""
        state = state_of(
            model, owners, self.outer_level, self.sampler.keras_optimizer()
        )
        del state["weights"]
        module = checkpointed(state)
        module.count = self.step.count
        module.kept = self.step.kept
        return module


def identity_of(model: keras.Model, owners: list) -> tuple:
    """A model, its trainable weights and hyperparameters, as they are now."""
    return (
        weakref.ref(model),
        [id(weight) for weight in model.trainable_variables],
        [id(variable) for variable in variables_of(owners)],
    )
