"""A Keras model that learns its hyperparameters while it trains.

`train_step` is one outer iteration: a chain of inner steps that moves the
weights and estimates the hypergradient, then one step of the optimizer of the
hyperparameters. Everything around it is Keras's own `fit`.
"""

import math
from collections.abc import Callable
from typing import Any

import keras

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_known
from keras_hposgld.data.elements import inputs_of
from keras_hposgld.data.epochs import in_epochs
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.hyperparameters.discovery import attach_regularizer
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.training import export
from keras_hposgld.training import keras_problem
from keras_hposgld.training.first_chain import FirstChain
from keras_hposgld.training.learner import Learner
from keras_hposgld.training.memory_estimate import estimate_memory
from keras_hposgld.training.memory_estimate import MemoryEstimate
from keras_hposgld.training.memory_estimate import warn_if_too_much
from keras_hposgld.training.update_guard import StopOnNonFinite
from keras_hposgld.training.weight_copies import WeightCopies

STARTS = ("continue", "initial")


@keras.saving.register_keras_serializable(package="keras_hposgld")
class BilevelModel(Learner):
    """Wraps a Keras model so that `fit` learns its hyperparameters too.

    The progress bar counts outer iterations; each takes a chain of
    `hypergradient.num_steps` inner steps. An epoch is as many outer iterations
    as one pass over the training data by the inner steps takes, rounded up.

    Args:
        model: `keras.Model` with learnable hyperparameters, such as
            `LearnableL2` as `kernel_regularizer`.
        regularizer: A learnable regularizer to attach to weights of a model
            that was made without one: each gets strengths of its own. Defaults
            to `None`.
        filter: Function from a trainable weight (`keras.Variable`, which has
            a `path`, `name` and `shape`) to whether `regularizer` is attached
            to it. `None` (default): every kernel, a weight whose name ends so.
            A learner that is loaded from a file keeps those that were chosen.
        example_weights: `ExampleWeights`: a learned weight for each training
            example. Defaults to `None`. The training data are then arrays, in
            the order of the table, or batches whose third part is the integer
            index of each example.
        seed: Integer: the order of the examples. `None`, the default, draws
            one from Python's generator, which `keras.utils.set_random_seed`
            fixes.
        name: String.

    Raises:
        TypeError: If `model` is no `keras.Model`.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(
                1, kernel_regularizer=hs.regularizers.LearnableL2(1e-2)
            ),
        ]
    )
    learner = hs.BilevelModel(model)
    learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
    x, y = np.random.normal(size=(64, 5)), np.random.normal(size=(64, 1))
    history = learner.fit(
        x[:40], y[:40], outer_data=(x[40:], y[40:]), batch_size=8, verbose=0
    )
    print(history.history["outer_loss"], learner.hyperparameter_values())
    ```
    """

    def __init__(
        self,
        model: keras.Model,
        regularizer: Any = None,
        filter: Callable | None = None,
        example_weights: Any = None,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(model, seed=seed, name=name)
        self.regularizer = regularizer
        self.filter = filter
        self.example_weights = example_weights
        self.starting_weights = WeightCopies("starting_weights")
        if self.built:
            self.find_hyperparameters()

    def find_hyperparameters(self) -> list[Hyperparameter]:
        """The objects that own the hyperparameters of the built model."""
        attach_regularizer(self.model, self.regularizer, self.filter)
        return super().find_hyperparameters()

    def compile(
        self,
        optimizer: Any,
        loss: Any = None,
        metrics: Any = None,
        hypergradient: Any = "hpo_sgld",
        hyper_optimizer: Any = None,
        outer_loss: Any = None,
        start: str = "continue",
        layer_state: str = "carried",
        warmup_steps: int = 0,
        max_skipped_updates: int = 10,
        **keras_arguments: Any,
    ) -> None:
        """Configures both levels.

        Args:
            optimizer: The sampler of the inner chain: `SGLD`, `PSGLD`, or a
                Keras optimizer of a kind that `samplers.from_optimizer`
                serves, such as `"adam"`.
            loss: The inner loss, as in Keras.
            metrics: As in Keras; they follow the inner steps in `fit`.
            hypergradient: An estimator or its alias. Defaults to
                `"hpo_sgld"`.
            hyper_optimizer: Keras optimizer of the hyperparameters. Defaults
                to `keras.optimizers.Adam(0.05)`.
            outer_loss: What the hyperparameters are to lower: a Keras loss.
                `None` (default): `loss` without the regularization. Needed
                where `loss` itself is learned.
            start: Where a chain starts. `"continue"` (default): where the one
                before it ended. `"initial"`: at the weights of the first fit.
            layer_state: `"carried"` (default) or `"frozen"`: what becomes of
                the state of layers such as BatchNormalization and Dropout,
                see `keras_hposgld.training.keras_problem`.
            warmup_steps: Integer. The hyperparameters stay as they are in
                chains that start before so many inner steps. Defaults to `0`.
            max_skipped_updates: Integer. An outer iteration in which a number
                is not finite changes neither weights nor hyperparameters;
                after so many in a row `fit` stops with an error. Defaults to
                `10`.
            **keras_arguments: `loss_weights`, `weighted_metrics`,
                `run_eagerly`, `jit_compile` (`"auto"` is off on CPU), as in
                Keras.

        Raises:
            TypeError: If `optimizer` is not a sampler.
            ValueError: If an argument is unknown or out of range, if
                `optimizer` is of a kind that is not served, if a built model
                has no hyperparameters, or if the learning rate is too large
                for the bound of the strengths.
        """
        optimizer = self.use_sampler(optimizer)
        check_known("start", start, STARTS)
        self.outer_level.configure(
            hypergradient,
            hyper_optimizer,
            outer_loss=outer_loss,
            layer_state=layer_state,
            warmup_steps=warmup_steps,
            max_skipped_updates=max_skipped_updates,
        )
        self.start = start
        plain = {"loss": loss, "metrics": metrics} | keras_arguments
        super().compile(optimizer=optimizer, auto_scale_loss=False, **plain)
        # In a function, lest Keras track the metrics a second time.
        self.plain_compile_arguments = lambda: plain
        if self.built:
            self._prepare()

    def _prepare(self):
        weights = self.trainable_variables
        self.placement.check(
            [
                *self.model.variables,
                *self.hyperparameters,
                self.optimizer.iterations,
                self.hyper_optimizer.iterations,
            ],
            self.hypergradient,
            self.jit_compile,
            self.steps_per_execution,
        )
        self.outer_level.prepare(
            weights, self.find_hyperparameters(), self.sampler
        )
        if self.start == "initial":
            self.starting_weights.build_for(weights)
        self.track_for_checkpoints()

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        outer_data: Any = None,
        outer_split: float = 0.0,
        outer_batch_size: int | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        validation_batch_size: int | None = None,
        shuffle: bool = True,
        class_weight: dict | None = None,
        sample_weight: Any = None,
        steps_per_epoch: int | None = None,
        callbacks: Any = None,
        **keras_arguments: Any,
    ) -> keras.callbacks.History:
        """Trains the weights and learns the hyperparameters.

        Arguments that are not named here are those of `keras.Model.fit`.

        Args:
            x: Inputs of the inner level, or an object that yields inputs and
                targets: a `tf.data.Dataset` (of batches, or of single
                examples), a `keras.utils.PyDataset` or a generator.
            outer_data: `(x, y)`, `(x, y, sample_weight)` or an object of the
                same kinds: the outer level.
            outer_split: Float: the share of the training arrays, taken from
                their end, that becomes the outer level instead.
            outer_batch_size: Integer, defaults to `batch_size`.
            class_weight: Applies to the inner level.
            sample_weight: Applies to the inner level.
            steps_per_epoch: Outer iterations in an epoch.
            **keras_arguments: `verbose`, `initial_epoch`, `validation_steps`,
                `validation_freq`.

        Returns:
            `keras.callbacks.History` with `"loss"` (inner, regularization
            included, mean over the inner steps), `"outer_loss"`,
            `"hypergradient_norm"`, `"skipped_updates"` and the metrics, and
            their validation values, `"val_outer_loss"` among them.

        Raises:
            ValueError: If outer data are missing, given twice, empty, or of
                another structure than the training data.
            RuntimeError: If `compile` was not called, or if
                `max_skipped_updates` updates in a row were skipped because a
                number was not finite. Weights and hyperparameters are then
                those before the first of them.
        """
        if not self.compiled:
            raise RuntimeError(
                "`compile(...)` must be called before `fit(...)`."
            )
        self.seed = self.placement.agreed(self.seed)
        self.sampler.seed = self.placement.agreed(self.sampler.seed)
        data = FitData.from_fit(
            (x, y, sample_weight),
            class_weight=class_weight,
            validation_split=validation_split,
            validation_data=validation_data,
            outer_data=outer_data,
            outer_split=outer_split,
            batch_size=batch_size,
            outer_batch_size=outer_batch_size,
            shuffle=shuffle,
            seed=self.seed,
            inputs=inputs_of(self.model),
            needs_targets=self._needs_targets(),
            example_weights=self.example_weights,
        )
        with self.distribute_strategy.scope():
            keras_problem.build_on(self, data.first_batch(), self._weigh)
            self._prepare()
            if self.start == "initial" and not self.starting_weights.are_set:
                self.starting_weights.remember(self.trainable_variables)
        num_steps, first = self.hypergradient.num_steps, FirstChain()
        warn_if_too_much(self._memory_estimate(), data.bytes_of(num_steps))
        chains = self.placement.chains(
            lambda: data.chains(num_steps, first.number, not self.jit_compile),
            data.batch_sizes,
        )
        if steps_per_epoch is None:
            steps_per_epoch = data.chains_per_epoch(num_steps)
        steps_per_epoch = check_count("steps_per_epoch", steps_per_epoch, 1)

        def num_drawn():
            return int(self.outer_iterations.numpy()) - first.number()

        with data.explains_its_end(num_drawn):
            return super().fit(
                in_epochs(chains, steps_per_epoch, self.steps_per_execution),
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
                validation_data=data.validation_data,
                validation_batch_size=validation_batch_size or batch_size,
                shuffle=False,  # done already
                callbacks=self.with_callbacks(
                    callbacks, [first, StopOnNonFinite()]
                ),
                **keras_arguments,
            )

    def _needs_targets(self):
        """Whether the inner and the outer objective take targets."""
        has_loss = self.plain_compile_arguments()["loss"] is not None
        return has_loss, has_loss or self.outer_level.outer_loss is not None

    def _weigh(self, sample_weight):
        if self.example_weights is None:
            return sample_weight
        return self.example_weights(sample_weight)

    def memory_estimate(self) -> MemoryEstimate:
        """How many bytes `fit` is going to need, activations not counted.

        `fit` warns by itself where a chain is not going to fit into the
        memory that is left on a CPU.

        Returns:
            `MemoryEstimate`, which prints as one line.

        Raises:
            RuntimeError: If the learner was not built and compiled.
        """
        if not (self.built and self.compiled):
            raise RuntimeError(
                "`compile(...)` must be called, on a model that is built, "
                "before `memory_estimate()`."
            )
        self._prepare()
        return self._memory_estimate()

    def _memory_estimate(self):
        copies = [
            *self.starting_weights.values,
            *self.outer_level.memory.values,
        ]
        return estimate_memory(
            self.trainable_variables,
            copies,
            self.hyperparameters,
            self.hyper_optimizer.variables,
            self.hypergradient,
            self.sampler,
        )

    def train_step(self, data):
        """One outer iteration, on the stacked batches of one chain."""
        outer_level = self.outer_level
        problem = keras_problem.KerasProblem(
            self,
            self.hyperparameters,
            keras_problem.layer_variables(self.model),
            outer_level.loss(self),
            outer_level.layer_state,
            weigh=self._weigh,
        )
        start = (
            problem.weights
            if self.start == "continue"
            else self.starting_weights.values
        )
        outer_level.run(
            problem,
            *data,
            start=start,
            sampler=self.sampler,
            placement=self.placement,
        )
        return self.get_metrics_result()

    def summary(self, *args, print_fn=None, **keras_arguments):
        """Prints Keras's summary of the model, and the hyperparameters.

        Keras counts hyperparameters among the non-trainable parameters; the
        line below its table says how many of those they are.
        """
        self.model.summary(*args, print_fn=print_fn, **keras_arguments)
        number = sum(math.prod(v.shape) for v in self.hyperparameters)
        (print_fn or print)(
            f" Hyperparameters: {number:,} (learned on the outer data; Keras "
            "counts those of its layers as non-trainable)"
        )

    def state(self) -> dict[str, list[keras.Variable]]:
        """All variables that training resumes from, by what they are."""
        return super().state() | {
            "starting_weights": list(self.starting_weights.weights)
        }

    def own_compile_arguments(self) -> dict:
        return super().own_compile_arguments() | {
            "start": self.start,
            "warmup_steps": self.outer_level.warmup_steps,
        }

    def get_config(self) -> dict:
        serialize = keras.saving.serialize_keras_object
        return super().get_config() | {
            "regularizer": serialize(self.regularizer),
            "example_weights": serialize(self.example_weights),
        }

    def export(
        self,
        filepath: Any = None,
        format: str = "tf_saved_model",
        **keras_arguments: Any,
    ) -> keras.Model:
        """A plain Keras model, which loads without `keras_hposgld`.

        Args:
            filepath: Where to write it for serving, as in
                `keras.Model.export`. `None` (default): it is not written.
            format: As in `keras.Model.export`.
            **keras_arguments: Likewise.

        Returns:
            `keras.Model` with the same weights, predictions and losses. Its
            regularizers are Keras's own, which take one number: the learned
            strength where there is one per tensor, else the number that gives
            the same penalty now. Train on under the learned strengths with
            `refit` or with the wrapped model.
        """
        return export.exported(
            self.model, filepath, format=format, **keras_arguments
        )

    def refit(
        self,
        x: Any = None,
        y: Any = None,
        *,
        optimizer: Any = None,
        **fit_arguments: Any,
    ) -> keras.callbacks.History:
        """Trains fresh weights with the learned hyperparameters held fixed.

        What a search does with the best constants that it found: use all the
        data, the outer ones too. The weights of this model are replaced by the
        result; the hyperparameters stay.

        Args:
            x: As in `keras.Model.fit`.
            y: Likewise.
            optimizer: Keras optimizer of the weights. `None` (default): the
                sampler that the model was compiled with, from its start.
            **fit_arguments: Passed to the plain `keras.Model.fit`.

        Returns:
            `keras.callbacks.History` of the plain training.
        """
        return export.refit(self, optimizer, x, y, **fit_arguments)
