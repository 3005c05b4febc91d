"""Learns the hyperparameters of a model in the course of an ordinary `fit`."""

import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld import samplers
from keras_hposgld.callbacks.backup import Backup
from keras_hposgld.callbacks.recent_examples import RecentExamples
from keras_hposgld.data import kinds
from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.data.elements import inputs_of
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.hyperparameters.discovery import attach_regularizer
from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.hyperparameters.discovery import variables_of
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.shown import ShowsHyperparameters
from keras_hposgld.samplers import SGLD
from keras_hposgld.training import keras_problem
from keras_hposgld.training import placement
from keras_hposgld.training.outer_level import OuterLevel
from keras_hposgld.training.state import checkpointed
from keras_hposgld.training.state import state_of


class LearnHyperparameters(ShowsHyperparameters, keras.callbacks.Callback):
    """Updates the learnable hyperparameters of a model every so many batches.

    The model is trained as it would be without the callback, with any
    optimizer and any loss. After each `every` batches a chain of
    `estimator.num_steps` inner steps starts from the current weights, and its
    hypergradient moves the hyperparameters. The chain works on copies: weights,
    optimizer, metrics and random generators of the model stay as they are.

    The inner steps of a chain are taken on the examples that `fit` trained on
    last, so there is no chain before there have been enough of them. The
    callback adds `outer_loss`, `hypergradient_norm` and `skipped_updates` to
    the logs of an epoch (not a number where no chain ran); callbacks that are
    to see them come after it in the list.

    Args:
        outer_data: `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a generator: what the hyperparameters
            are learned on.
        estimator: `HypergradientEstimator` or alias. Defaults to `"hpo_sgld"`.
        sampler: `Sampler` or Keras optimizer, the step of the chain, as in
            `BilevelModel.compile`. Each chain begins anew. Defaults to
            `SGLD(0.01)`.
        hyper_optimizer: Keras optimizer of the hyperparameters. Defaults to
            `keras.optimizers.Adam(0.05)`.
        every: Integer, batches of `fit` from chain to chain. Defaults to `50`.
        batch_size: Integer, the examples in an inner step, and in an outer one
            where `outer_data` are arrays or single examples. Defaults to `32`.
        inner_data: The training data, in any form that `outer_data` may have:
            the chains then draw from them. `None` (default): the examples
            that `fit` trained on last. Under a strategy they are needed,
            and model and callback are to be made in the strategy's scope.
        regularizer: A learnable regularizer to attach to the kernels of a
            model made without one. It is not saved with the model.
        filter: Function from a trainable weight to whether `regularizer` is
            attached to it. `None` (default): every kernel.
        outer_loss: Keras loss. `None` (default): the compiled loss without the
            regularization.
        layer_state: `"carried"` (default) or `"frozen"`, see
            `keras_hposgld.training.keras_problem`.
        warmup_batches: Integer: no chain before so many batches. Defaults to
            `0`.
        max_skipped_updates: Integer: after so many outer iterations in a row
            with a number that is not finite, `fit` stops with an error.
            Defaults to `10`.
        backup_dir: String: where to keep, from epoch to epoch, what a
            `fit` with `keras.callbacks.BackupAndRestore` needs to go on
            exactly: the state of `hyper_optimizer`, counters, recent
            examples, the random states of dropout. `None` (default): they are
            not kept. Put this callback before `BackupAndRestore`.
        seed: Integer: the order of the outer examples.

    Raises:
        TypeError: If `sampler` is not a sampler, or if the model is a
            `BilevelModel`.
        ValueError: If a number is out of range; when training begins, if the
            model has no hyperparameters or the learning rate of the sampler
            is too large for their bound.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    x, y = np.random.normal(size=(200, 5)), np.random.normal(size=(200, 1))
    strength = hs.regularizers.LearnableL2(1e-2, granularity="input")
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(1, kernel_regularizer=strength),
        ]
    )
    model.compile("adam", loss="mse")
    learning = hs.callbacks.LearnHyperparameters(
        outer_data=(x[150:], y[150:]), every=5, batch_size=4
    )
    model.fit(x[:150], y[:150], epochs=10, callbacks=[learning], verbose=0)
    print(learning.hyperparameter_values())
    ```
    """

    def __init__(
        self,
        outer_data: Any,
        estimator: Any = "hpo_sgld",
        sampler: Any = None,
        hyper_optimizer: Any = None,
        every: int = 50,
        *,
        batch_size: int = 32,
        inner_data: Any = None,
        regularizer: Any = None,
        filter: Callable | None = None,
        outer_loss: Any = None,
        layer_state: str = "carried",
        warmup_batches: int = 0,
        max_skipped_updates: int = 10,
        backup_dir: str | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        self.sampler = samplers.get(SGLD(0.01) if sampler is None else sampler)
        self.outer_data = outer_data
        self.inner_data = inner_data
        self.every = estimators.check_count("every", every, 1)
        self.batch_size = estimators.check_count("batch_size", batch_size, 1)
        self.warmup_batches = estimators.check_count(
            "warmup_batches", warmup_batches, 0
        )
        self.regularizer = regularizer
        self.filter = filter
        self.backup_dir = backup_dir
        self.seed = random.randrange(2**31) if seed is None else int(seed)
        self.outer_level = OuterLevel()
        self.outer_level.configure(
            estimator,
            hyper_optimizer,
            outer_loss=outer_loss,
            layer_state=layer_state,
            max_skipped_updates=max_skipped_updates,
        )
        self._num_batches = 0
        self.recent = RecentExamples(self._num_steps * self.batch_size)
        self._inner = self._outer = None

    @property
    def _num_steps(self):
        return self.outer_level.estimator.num_steps

    def on_train_begin(self, logs=None):
        model = self.model
        if hasattr(model, "outer_level"):
            raise TypeError(
                "`LearnHyperparameters` belongs to the `fit` of a plain Keras "
                f"model. Received: {model!r}, which learns its "
                "hyperparameters by itself."
            )
        self._placement = placement.of_model(model)
        if self.inner_data is None:
            self._placement.check_recording()
        if self._outer is None:
            self._outer = self._level("outer_data", self.outer_data)
            if self.inner_data is not None:
                self._inner = self._level("inner_data", self.inner_data)
            levels = [self._inner, self._outer]
            self._data = FitData(
                [level for level in levels if level is not None]
            )
        owners = self.find_hyperparameters()
        self._refuse_decay(model)
        with model.distribute_strategy.scope():
            self.outer_level.prepare(
                model.trainable_variables, owners, self.sampler
            )
        self._placement.check(
            [
                *model.variables,
                *self.outer_level.weights,
                self.sampler.keras_optimizer().iterations,
                self.outer_level.hyper_optimizer.iterations,
            ],
            self.outer_level.estimator,
        )
        self._hyperparameters = variables_of(owners)
        self._run_chain = self._make_chain_function()
        self._batches = None
        self._stop_recording()  # of a `fit` that was broken off
        self._plain_train_function = model.train_function
        if self._inner is None:
            model.train_step = self.recent.record(
                model.train_step, model.jit_compile and not model.run_eagerly
            )
            model.make_train_function(force=True)

    def _refuse_decay(self, model):
        for weight in model.trainable_variables:
            if getattr(weight.regularizer, "decays", False):
                raise ValueError(
                    "`LearnableWeightDecay` cannot be learned by this "
                    "callback: the optimizer of `fit` does not apply it. "
                    f"Received: the weight {weight.path!r}. Use "
                    "`keras_hposgld.BilevelModel`, or `LearnableL2`."
                )

    def _level(self, name, data):
        return kinds.level_data(
            name,
            *keras.utils.unpack_x_y_sample_weight(as_arrays(data)),
            default_batch_size=self.batch_size,
            seed=self.seed + (name == "outer_data"),
            inputs=inputs_of(self.model),
            needs_targets=self.model.loss is not None
            or (
                name == "outer_data" and self.outer_level.outer_loss is not None
            ),
        )

    def _stop_recording(self):
        # The instance's own attribute hides the method of the class.
        if getattr(vars(self.model).get("train_step"), "records", False):
            del self.model.train_step

    def _make_chain_function(self):
        model, outer_level = self.model, self.outer_level

        def run_chain(inner_batches, outer_batches):
            problem = keras_problem.KerasProblem(
                model,
                self._hyperparameters,
                keras_problem.layer_variables(model),
                outer_level.loss(model),
                outer_level.layer_state,
                tracks_metrics=False,
            )
            outer_level.run(
                problem,
                inner_batches,
                outer_batches,
                start=problem.weights,
                sampler=self.sampler,
                placement=self._placement,
                moves=False,
            )

        if model.run_eagerly:
            return run_chain
        # Batches may differ in length from chain to chain.
        return tf.function(run_chain, autograph=False, reduce_retracing=True)

    def on_epoch_begin(self, epoch, logs=None):
        if self._batches is None:
            # Not when training begins: a callback after this one may only
            # then restore the model from a backup.
            self._restore()
            self._batches = iter(self._draw())
            self._num_drawn = 0
        self._last_batch = -1
        self._num_chains = 0
        for metric in self.outer_level.metrics:
            metric.reset_state()

    def on_train_batch_end(self, batch, logs=None):
        before = self._num_batches
        # More than one, where Keras runs several steps at a time.
        self._num_batches = now = before + batch - self._last_batch
        self._last_batch = batch
        is_due = now // self.every > before // self.every
        has_examples = self._inner is not None or self.recent.is_full
        if not is_due or now < self.warmup_batches or not has_examples:
            return
        with self._data.explains_its_end(lambda: self._num_drawn):
            batches = next(self._batches)
        self._num_drawn += 1
        if self._inner is None:
            batches = self.recent.stacked(self._num_steps), *batches
        self._run_chain(*batches)
        self._num_chains += 1
        self.outer_level.guard.raise_if_too_many()

    def _draw(self):
        """Pairs of stacked inner and outer batches, or the outer ones alone."""
        first = int(self.outer_level.iterations.numpy())
        return self._placement.chains(
            lambda: self._data.chains(self._num_steps, lambda: first),
            self._data.batch_sizes,
        )

    def on_epoch_end(self, epoch, logs=None):
        for metric in self.outer_level.metrics:
            result = float(metric.result()) if self._num_chains else np.nan
            logs[metric.name] = result
        self._back_up()

    def on_train_end(self, logs=None):
        self._stop_recording()
        self.model.train_function = self._plain_train_function
        if self.backup_dir is not None:
            Backup(self.backup_dir).remove()

    # The hyperparameters.

    def find_hyperparameters(self) -> list[Hyperparameter]:
        """The objects that own the hyperparameters of the built model."""
        attach_regularizer(self.model, self.regularizer, self.filter)
        return find_hyperparameters(self.model)

    # Backups.

    @property
    def _step(self):
        return int(self.model.optimizer.iterations.numpy())

    def _state(self):
        """The state; the weights are in the model's own backup."""
        state = state_of(
            self.model,
            self.find_hyperparameters(),
            self.outer_level,
            self.sampler.keras_optimizer(),
        )
        del state["weights"]
        module = checkpointed(state)
        module.recent = self.recent
        module.num_batches = tf.Variable(self._num_batches, dtype=tf.int64)
        return module

    def _back_up(self):
        if self.backup_dir is not None:
            Backup(self.backup_dir).save(self._step, self._state())

    def _restore(self):
        if self.backup_dir is None or self._step == 0:
            return
        state = self._state()
        if Backup(self.backup_dir).restore(self._step, state):
            self._num_batches = int(state.num_batches)
