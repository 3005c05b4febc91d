"""What `BilevelModel` and `MetaModel` have in common.

Both wrap a Keras model and are Keras models themselves, whose `train_step` is
one outer iteration, on one device or on several.
"""

import abc
import random
from typing import Any
from typing import NoReturn

import keras
import tensorflow as tf

from keras_hposgld import samplers
from keras_hposgld.estimators import HypergradientEstimator
from keras_hposgld.hyperparameters.discovery import owners_in
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.training import placement
from keras_hposgld.training.fit_watch import callbacks_of
from keras_hposgld.training.fit_watch import WatchLearningRate
from keras_hposgld.training.outer_level import OuterLevel
from keras_hposgld.training.placement.on_replica import local_loss
from keras_hposgld.training.state import checkpointed
from keras_hposgld.training.state import state_of
from keras_hposgld.training.state import unsaved_by_keras
from keras_hposgld.training.update_guard import StopOnNonFinite
from keras_hposgld.training.wrapper import ModelWrapper


class Learner(ModelWrapper):
    """A Keras model with an outer level, around a model of the user's.

    Args:
        model: `keras.Model`.
        seed: Integer, `None` for one from Python's generator.
        name: String.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
    """

    train_function: Any  # Keras's own, until they are made
    test_function: Any

    def __init__(
        self,
        model: keras.Model,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(model, name=name)
        self.placement = placement.current()
        self.seed = random.randrange(2**31) if seed is None else int(seed)
        self.outer_level = OuterLevel()
        if model.built:
            self.built = True

    # The hyperparameters.

    def find_hyperparameters(self) -> list[Hyperparameter]:
        """The objects that own the hyperparameters of the built model."""
        return owners_in(self, self.model)

    # What it was compiled with.

    @property
    def strategy(self) -> tf.distribute.Strategy | None:
        """The strategy in whose scope the learner was made."""
        return self.placement.strategy

    @property
    def hypergradient(self) -> HypergradientEstimator:
        """The estimator that the learner was compiled with."""
        return self.outer_level.estimator

    @property
    def hyper_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer of the hyperparameters."""
        return self.outer_level.hyper_optimizer

    @property
    def outer_iterations(self) -> keras.Variable:
        """The number of outer iterations so far."""
        return self.outer_level.iterations

    def use_sampler(self, optimizer: Any) -> keras.optimizers.Optimizer:
        """Makes a sampler of what `compile` got; returns its Keras optimizer.

        Raises:
            TypeError: If it is no sampler or optimizer with Keras variables.
            ValueError: If it is an optimizer of a kind that is not served.
        """
        self.sampler = samplers.get(optimizer, "optimizer")
        keras_optimizer = self.sampler.keras_optimizer()
        if keras_optimizer is None:
            raise TypeError(
                "`optimizer` must keep its state in a Keras optimizer. "
                f"Received: optimizer={optimizer!r}, which has none. Let it "
                "inherit from `keras_hposgld.SGLD`, or use "
                "`keras_hposgld.hypergradient`."
            )
        return keras_optimizer

    def own_compile_arguments(self) -> dict:
        """The arguments of `compile` that Keras does not know."""
        outer_level = self.outer_level
        return {
            "hypergradient": self.hypergradient,
            "hyper_optimizer": self.hyper_optimizer,
            "outer_loss": outer_level.outer_loss,
            "layer_state": outer_level.layer_state,
            "max_skipped_updates": outer_level.guard.max_skipped_updates,
        }

    # What Keras calls to train and to evaluate.

    def make_train_function(self, force: bool = False) -> None:
        """As in Keras; on several replicas the step spans them."""
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = self.placement.step_function(
                self, self.train_step, self.train_function
            )

    def make_test_function(self, force: bool = False) -> None:
        """The same: Keras's own cannot reduce logs across machines."""

        def step(data: Any) -> dict:
            self.placement.call(self.test_step, data)
            return self.outer_level.logs.without_training(
                self.get_metrics_result()
            )

        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self.placement.step_function(
                self, step, self.test_function
            )

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # Private to Keras, whose `fit` and `evaluate` call it to build what is
        # not built; under a strategy it draws data too early, and on several
        # machines it fails (keras issue 20585). `fit` has built everything.
        if self.strategy is None:
            super()._maybe_symbolic_build(*args, **kwargs)

    def test_step(self, data: Any) -> dict:
        """As in Keras, without the logs that only training has."""
        return self.outer_level.logs.without_training(super().test_step(data))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """As in Keras; out of training the outer loss is tracked, too."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        # Without targets there is one only if layers make it.
        has_outer = y is not None or (
            self._compile_loss is None and self.outer_level.outer_loss is None
        )
        if not training and has_outer and self.hypergradient.needs_outer:
            self.outer_level.logs.loss.update_state(
                local_loss(self._outer_loss_of(y, y_pred, sample_weight)),
                tf.shape(tf.nest.flatten(x)[0])[0],
            )
        return loss

    def _outer_loss_of(
        self, y: Any, y_pred: Any, sample_weight: Any
    ) -> tf.Tensor:
        function = self.outer_level.loss(self)
        if function is not self._compile_loss:
            return function(y, y_pred, sample_weight)
        # It updates the metrics of single outputs, for the second time.
        with keras.StatelessScope():
            return function(y, y_pred, sample_weight)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        *,
        return_dict: bool = False,
        **arguments: Any,
    ) -> Any:
        """As in Keras; with `return_dict=True` also the `"outer_loss"`.

        `"loss"` includes the regularization, as it does in Keras. The outer
        loss does not, and is the one to compare runs by.
        """
        logs = super().evaluate(x, y, return_dict=True, **arguments)
        if return_dict:
            return logs
        logs.pop("outer_loss", None)
        # Private to Keras, and used so that the list is in no other order.
        return self._flatten_metrics_in_order(logs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: an outer iteration takes two levels of batches."""
        raise RuntimeError(
            "`train_on_batch` cannot be called: one outer iteration takes a "
            "chain of inner batches and as many outer ones. Use "
            "`fit(..., steps_per_epoch=...)` with as many batches as a chain."
        )

    def watched_fit(
        self,
        x: Any,
        *,
        callbacks: Any = None,
        own_callbacks: Any = (),
        num_steps: int = 1,
        **arguments: Any,
    ) -> keras.callbacks.History:
        """Keras's `fit`, with callbacks of our own after those of the user.

        What was added for its time is taken away again, however it ends.

        Args:
            x: As in Keras.
            callbacks: As in Keras.
            own_callbacks: Callbacks that come after those.
            num_steps: Integer, the batches that a `train_step` takes.
            **arguments: As in Keras, whose steps are calls of `train_step`.
        """
        own = [*own_callbacks, WatchLearningRate(), StopOnNonFinite()]
        callbacks = callbacks_of(self, callbacks, own, num_steps, arguments)
        observers = list(self.outer_level.observers)
        try:
            return super().fit(x, callbacks=callbacks, **arguments)
        finally:
            if self.outer_level.observers != observers:
                self.outer_level.observers[:] = observers
                self.train_function = None  # the old one calls them

    @abc.abstractmethod
    def steps_ahead(self, batches: int) -> range:
        """The numbers of the inner steps in batches to come."""

    # What Keras calls to save and to load. The wrapped model, the strengths,
    # optimizers and counters it saves by itself: they hang on attributes.

    def state(self) -> dict[str, list[keras.Variable]]:
        """All variables that training resumes from, by what they are."""
        return state_of(
            self.model,
            self.find_hyperparameters(),
            self.outer_level,
            self.optimizer,
        )

    def track_for_checkpoints(self) -> None:
        """Hangs the state where `tf.train.Checkpoint` finds it."""
        self._checkpointed_state = checkpointed(self.state())

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        for name, variable in unsaved_by_keras(self).items():
            store[name] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        values = {key: store[key] for key in store.keys()}
        for name, variable in unsaved_by_keras(self).items():
            variable.assign(values.pop(name))
        if not self.compiled:  # so there is no loss to load into
            values = {k: v for k, v in values.items() if k[:5] != "loss_"}
        super().load_own_variables(values)

    def get_config(self) -> dict:
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> "Learner":
        return cls(
            **{
                key: keras.saving.deserialize_keras_object(
                    value, custom_objects=custom_objects
                )
                for key, value in config.items()
            }
        )

    def get_compile_config(self) -> dict:
        if not self.compiled:
            return super().get_compile_config()
        return super().get_compile_config() | (
            keras.saving.serialize_keras_object(self.own_compile_arguments())
        )

    def compile_from_config(self, config: dict) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
