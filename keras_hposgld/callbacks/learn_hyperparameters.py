"""Learns the hyperparameters of a model in the course of an ordinary `fit`."""

import functools
import random
from collections.abc import Callable
from typing import Any

from keras_hposgld.callbacks.backup import Backup
from keras_hposgld.callbacks.chain_kind import ChainKind
from keras_hposgld.callbacks.chain_kind import fresh
from keras_hposgld.callbacks.checks import check_alone
from keras_hposgld.callbacks.checks import check_decay
from keras_hposgld.callbacks.checks import check_model
from keras_hposgld.callbacks.checks import warn_of_unsaved
from keras_hposgld.callbacks.course import Course
from keras_hposgld.callbacks.learning_callback import LearningCallback
from keras_hposgld.callbacks.learning_data import build
from keras_hposgld.callbacks.weighed_loss import WeighedLoss
from keras_hposgld.hyperparameters.discovery import attach_regularizer
from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.training.checks import check_learnable


class LearnHyperparameters(LearningCallback):
    """Learns the hyperparameters of a model in the course of its `fit`.

    The model is trained as it would be without the callback, with its own
    optimizer, loss and data. There are two kinds of chains to learn from:

    * `"training"`: the steps that `fit` takes are those of the chain, so that
      it costs little more than a plain `fit`. The optimizer must be one that
      `samplers.from_optimizer` serves, or a sampler, and `train_step` Keras's.
    * `"apart"`: after each `every` batches a chain of its own starts from the
      current weights, on copies of them and on the examples that `fit` trained
      on last, once there are enough. It serves any optimizer and estimator.

    It adds `outer_loss` and `hypergradient_norm` to the logs of an epoch (the
    latest, where no chain ended in it), `skipped_updates`, `median_strength`,
    and with validation data `val_outer_loss`. Callbacks that are to see them
    come after it in the list. A warning says at the end what speaks against
    what was learned.

    It may be used for one `fit` after the other, and copied. With another
    model or other trainable weights it begins anew, as a copy of it does.

    Args:
        outer_data: `(x, y)`, `(x, y, sample_weight)`, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or a generator: what the hyperparameters
            are learned on.
        estimator: `HypergradientEstimator` or alias. `None` (default): in
            training `HPOSGLD(0, 5, outer_every=5)`, apart `"hpo_sgld"`. In
            training it must be one that takes single steps, such as `HPOSGLD`.
        sampler: `Sampler` or Keras optimizer, the step of a chain apart, as in
            `BilevelModel.compile`. Each chain begins anew. Defaults to
            `SGLD(0.01)`.
        hyper_optimizer: Keras optimizer of the hyperparameters. `None`
            (default): Adam, at a rate that goes from 0.1 to 0 in the course of
            each `fit`, on half a cosine.
        every: Integer, batches of `fit` from the end of a chain to that of the
            next. `"auto"` (default): the length of a chain in training, `50`
            apart.
        batch_size: Integer, the examples in an outer batch (and in an inner
            step apart) where data are arrays or single examples. Defaults to
            `32`.
        chain: `"training"` or `"apart"`. `None` (default): in training, unless
            an argument or the model asks for what only chains apart can do.
        inner_data: For chains apart: the training data, in any form that
            `outer_data` may have. `None` (default): the examples that `fit`
            trained on last. Under a strategy they are needed. (There, model
            and callback are to be made in the strategy's scope.)
        regularizer: A learnable regularizer to attach to the kernels of a
            model made without one. It is not saved with the model.
        filter: Function from a trainable weight to whether `regularizer` is
            attached to it. `None` (default): every kernel.
        example_weights: `ExampleWeights` or `SourceWeights`. The training data
            then have integers where `fit` takes sample weights, the index or
            the source of each example: `model.fit(x, y, sample_weight=
            numpy.arange(len(x)))`, or batches (inputs, targets, integers), of
            `inner_data` too. They are not saved with the model. `None`
            (default): examples have the sample weights that `fit` gets.
        outer_loss: Keras loss, or a dictionary of them by output. `None`
            (default): the compiled loss without the regularization.
        layer_state: `"carried"` (default) or, apart, `"frozen"`: see
            `keras_hposgld.training.keras_problem`.
        warmup_batches: Integer: no hyperparameter moves before so many
            batches. Defaults to `0`.
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
        TypeError: If `sampler` is not a sampler, or `example_weights` are of
            another kind; if the model is a `BilevelModel`.
        ValueError: If a number is out of range, or an argument does not go
            with the kind of chain; when training begins, if the model has no
            hyperparameters, cannot be served, or if the learning rate is too
            large for the bound of a strength.

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
    learning = hs.callbacks.LearnHyperparameters(outer_data=(x[150:], y[150:]))
    model.fit(x[:150], y[:150], epochs=10, callbacks=[learning], verbose=0)
    print(learning.hyperparameter_values())
    ```
    """

    def __init__(
        self,
        outer_data: Any,
        estimator: Any = None,
        sampler: Any = None,
        hyper_optimizer: Any = None,
        every: int | str = "auto",
        *,
        batch_size: int = 32,
        chain: str | None = None,
        inner_data: Any = None,
        regularizer: Any = None,
        filter: Callable | None = None,
        example_weights: Any = None,
        outer_loss: Any = None,
        layer_state: str = "carried",
        warmup_batches: int = 0,
        max_skipped_updates: int = 10,
        backup_dir: str | None = None,
        seed: int | None = None,
    ):
        super().__init__()
        self.regularizer = regularizer
        self.filter = filter
        check_learnable(None, example_weights)
        self.example_weights = example_weights
        self._weighed = example_weights and WeighedLoss(example_weights)
        self.backup_dir = backup_dir
        self.seed = random.randrange(2**31) if seed is None else int(seed)
        self._kind = ChainKind(
            chain,
            outer_data=outer_data,
            estimator=estimator,
            sampler=sampler,
            hyper_optimizer=hyper_optimizer,
            every=every,
            batch_size=batch_size,
            inner_data=inner_data,
            outer_loss=outer_loss,
            layer_state=layer_state,
            warmup_batches=warmup_batches,
            max_skipped_updates=max_skipped_updates,
            seed=self.seed,
        )
        self._chains = self._kind.chains()
        self._num_batches = 0

    # Copies, as search tools make one for each trial.

    def __reduce__(self):
        arguments = {
            "regularizer": fresh(self.regularizer),
            "filter": self.filter,
            "example_weights": fresh(self.example_weights),
            "backup_dir": self.backup_dir,
            **self._kind.fresh_arguments(),
        }
        return functools.partial(type(self), **arguments), ()

    def __deepcopy__(self, memo):
        make, _ = self.__reduce__()  # the data are shared, as with Keras
        return make()

    # What Keras calls.

    def on_train_begin(self, logs=None):
        model = self.model
        check_model(model)
        self._begin_anew(self._kind.settles_for(model))
        check_alone(self)
        self._chains.read_data(model)
        build(model, self._chains.data)
        owners = self.find_hyperparameters()
        check_decay(model, self.chain)
        warn_of_unsaved(model, owners, self.regularizer)
        self._begin_anew(not self._chains.serves(model, owners))
        self._chains.read_data(model)
        self._begin_weighing()
        self._chains.begin(model, owners)
        self._course = Course(model, owners, self._chains)

    def _begin_weighing(self):
        if self._weighed:
            levels = self._chains.data.levels
            if len(levels) > 1:
                self.example_weights.check_batch(levels[0].spec)
            self._weighed.install(self.model)

    def _begin_anew(self, if_needed):
        if if_needed:
            self._chains.end(self.model)
            observers = self.outer_level.observers
            self._chains = self._kind.chains()
            self.outer_level.observers = observers
            self._num_batches = 0

    def on_epoch_begin(self, epoch, logs=None):
        if self._chains.batches is None:
            # Not when training begins: a callback after this one may only
            # then restore the model from a backup.
            if self._restore():  # what is judged begins with that
                owners = self._course.owners
                self._course = Course(self.model, owners, self._chains)
            self._chains.draw()
        self._epoch, self._last_batch = epoch, -1
        self._course.begin_epoch()

    def on_train_batch_begin(self, batch, logs=None):
        self._chains.set_rate(self._epoch, batch, self.params)
        self._chains.before()

    def on_train_batch_end(self, batch, logs=None):
        before = self._num_batches
        # More than one, where Keras runs several steps at a time.
        self._num_batches += batch - self._last_batch
        self._last_batch = batch
        if self._weighed:
            self._weighed.check_asked()
        self._chains.after(before, self._num_batches)

    def on_epoch_end(self, epoch, logs=None):
        self._course.end_epoch(logs)
        self._back_up()

    def on_train_end(self, logs=None):
        self._chains.end(self.model)
        if self._weighed:
            self._weighed.remove()
        if self.backup_dir is not None:
            Backup(self.backup_dir).remove()
        self._course.end(self._num_batches)

    # The hyperparameters.

    def find_hyperparameters(self) -> list[Hyperparameter]:
        """The objects that own the hyperparameters of the built model."""
        self.regularizer = attach_regularizer(
            self.model, self.regularizer, self.filter
        )
        found = find_hyperparameters(self.model)
        return found + ([self.example_weights] if self._weighed else [])
