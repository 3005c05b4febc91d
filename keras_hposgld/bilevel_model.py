"""A Keras model that learns its hyperparameters while it trains.

`train_step` is one outer iteration: a chain of inner steps that moves the
weights and estimates the hypergradient, then one step of the optimizer of the
hyperparameters. Everything around it is Keras's own `fit`.
"""

from typing import Any

import keras

from keras_hposgld.core.checks import check_known
from keras_hposgld.training.batch_count import chains_of
from keras_hposgld.training.bilevel_learner import BilevelLearner
from keras_hposgld.training.checks import check_fit
from keras_hposgld.training.checks import given_or_default
from keras_hposgld.training.refit import check_optimizer
from keras_hposgld.training.refit import refit_after

STARTS = ("continue", "initial")


@keras.saving.register_keras_serializable(package="keras_hposgld")
class BilevelModel(BilevelLearner):
    """Wraps a Keras model so that `fit` learns its hyperparameters too.

    Epochs, `steps_per_epoch` and the progress bar count batches, as in Keras:
    one an inner step. A chain groups `hypergradient.num_steps` of them, and
    an epoch is rounded up to whole chains.

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
        example_weights: `ExampleWeights` or `SourceWeights`: a learned weight
            for each training example, or source of them. The training data are
            arrays, or batches whose third part are integers: the index, or the
            source, of each example. Defaults to `None`.
        seed: Integer: the order of the examples, and which of them
            `outer_split` draws. `None`, the default, takes one from Python's
            generator, which `keras.utils.set_random_seed` fixes.
        name: String.
        outer_split: Float in [0, 1): `outer_split` of a `fit` that is given
            neither `outer_data` nor `outer_split`, such as that of a search
            tool. Defaults to `0.0`, for none.
        outer_folds: Integer: the same of `outer_folds`. Defaults to `None`.

    Raises:
        TypeError: If `model` is no `keras.Model`.
        ValueError: If `outer_folds` is below 2, or given with `outer_split` or
            `example_weights`.

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

    def compile(
        self,
        optimizer: Any = None,
        loss: Any = None,
        metrics: Any = None,
        hypergradient: Any = "hpo_sgld",
        hyper_optimizer: Any = None,
        outer_loss: Any = None,
        start: str = "continue",
        layer_state: str = "carried",
        warmup_steps: int = 0,
        max_skipped_updates: int = 10,
        posterior_samples: int | None = None,
        **keras_arguments: Any,
    ) -> None:
        """Configures both levels.

        Args:
            optimizer: The sampler of the inner chain: `SGLD`, `PSGLD`, or a
                Keras optimizer of a kind that `samplers.from_optimizer`
                serves, such as `"adam"`. `None` (default): `SGLD("auto")` with
                the evidence; else it must be given.
            loss: The inner loss, as in Keras.
            metrics: As in Keras; they follow the inner steps in `fit`.
            hypergradient: An estimator or its alias. Defaults to
                `"hpo_sgld"`. `"evidence"` learns from the training data alone,
                and refuses what is no likelihood or prior.
            hyper_optimizer: Keras optimizer of the hyperparameters. Defaults
                to `keras.optimizers.Adam(0.05)`.
            outer_loss: What the hyperparameters are to lower: a Keras loss,
                or a dictionary of them by the names of outputs, of which those
                that are not named do not count. `None` (default): `loss`
                without the regularization. Needed where `loss` is learned.
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
            posterior_samples: Integer: how many samples of the weights, evenly
                spaced over the second half of the training so far, predictions
                are averaged over; for an estimator that needs no outer data.
                `0`: they are those of the last sample. `None` (default): 32
                with such an estimator, else 0.
            **keras_arguments: `loss_weights`, `weighted_metrics`,
                `run_eagerly`, `jit_compile` (`"auto"` is off on CPU) and
                `steps_per_execution` (rounded up to whole chains), as in
                Keras.

        Raises:
            TypeError: If `optimizer` is not a sampler.
            ValueError: If an argument is unknown or out of range, if
                `optimizer` is of a kind that is not served, if a built model
                has no hyperparameters, or if the learning rate is too large
                for the bound of the strengths.
        """
        optimizer = self.use_sampler(given_or_default(optimizer, hypergradient))
        self.fold_copies.forget_sampler()
        check_known("start", start, STARTS)
        self.outer_level.configure(
            hypergradient,
            hyper_optimizer,
            outer_loss=outer_loss,
            layer_state=layer_state,
            warmup_steps=warmup_steps,
            max_skipped_updates=max_skipped_updates,
            serves_all=True,
        )
        self.configure_posterior(posterior_samples)
        self.start = start
        plain = {"loss": loss, "metrics": metrics} | keras_arguments
        super().compile(optimizer=optimizer, auto_scale_loss=False, **plain)
        # Of `train_step`, which takes the batches of a chain.
        self.steps_per_execution = chains_of(
            keras_arguments.get("steps_per_execution", 1),
            self.hypergradient.num_steps,
        )
        # In a function, lest Keras track the metrics a second time.
        self.plain_compile_arguments = lambda: plain
        if self.built:
            self._prepare()

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        outer_data: Any = None,
        outer_split: float | None = None,
        outer_folds: int | None = None,
        outer_batch_size: int | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        validation_batch_size: int | None = None,
        shuffle: bool = True,
        class_weight: dict | None = None,
        sample_weight: Any = None,
        sources: Any = None,
        steps_per_epoch: int | None = None,
        callbacks: Any = None,
        refit: bool | None = None,
        **keras_arguments: Any,
    ) -> keras.callbacks.History:
        """Trains the weights and learns the hyperparameters.

        Arguments that are not named here are those of `keras.Model.fit`.

        Args:
            x: Inputs of the inner level, or an object that yields inputs and
                targets: a `tf.data.Dataset` (of batches, or of single
                examples), a `keras.utils.PyDataset` or a generator.
            batch_size: As in Keras; of arrays, by default, 32 examples, or with
                the evidence all of them, 2048 at most, or 10 000 of a table
                of at most 300 000 numbers.
            outer_data: `(x, y)`, `(x, y, sample_weight)` or an object of the
                same kinds: the outer level. With `"evidence"` there is none,
                and none may be given, by whatever argument.
            outer_split: Float: the share of the training arrays that becomes
                the outer level instead, drawn by `data.split` with the seed of
                the learner: at random, and of each class alike. `None`
                (default): that of the constructor, unless there are
                `outer_data`.
            outer_folds: Integer of at least 2: all examples, which are arrays,
                are divided into so many folds, at random by the seed of the
                learner and of each class alike. Each fold is the outer level
                of a chain with weights of its own, that are trained on the
                others; the chains share the hyperparameters, which follow the
                mean of their hypergradients. An epoch takes as long as that
                many without folds. With `refit=False` the weights are those of
                the first fold. `None` (default): that of the constructor,
                unless there are `outer_data` or an `outer_split`.
            outer_batch_size: Integer, defaults to `batch_size`.
            class_weight: Applies to the inner level.
            sample_weight: Applies to the inner level.
            sources: With `SourceWeights`, the source of each example of arrays,
                integers `(n,)`; or `"votes"`, where the targets `(n,
                num_sources)` say what each source votes, -1 for nothing.
            steps_per_epoch: Batches of the inner level in an epoch, rounded
                up to whole chains. Defaults to one pass over the training data.
            callbacks: As in Keras. They see the learning, not the refit.
            refit: Whether to end with fresh weights, trained by `refit` on
                training and outer examples together, with the same weights of
                examples and classes, `batch_size` and validation data. It
                takes as many epochs as the learning came to, so that one that
                `EarlyStopping` ended is not trained longer; after
                `steps_per_epoch`, as many batches, rounded up to whole passes.
                If it fails or is interrupted, the model is as learning left
                it, whose `history` is kept. It needs arrays. `None` (default):
                `True` with folds, `False` without.
            **keras_arguments: `verbose`, `initial_epoch`, `validation_steps`,
                `validation_freq`.

        Returns:
            `keras.callbacks.History` with `"loss"` (inner, regularization
            included, mean over the inner steps), `"outer_loss"` (where there
            is one), `"hypergradient_norm"`, `"skipped_updates"` and the
            metrics, and their validation values, `"val_outer_loss"` among them.
            After a refit its attribute `refit` is the `History` of that.

        Raises:
            ValueError: If outer data are missing, given twice, empty, or of
                another structure than the training data; if `refit=True` and
                they cannot be joined with those, or the sampler is
                `SGLD("auto")`; if `outer_folds` are out of
                range or do not go with another argument.
            RuntimeError: If `compile` was not called, or if
                `max_skipped_updates` updates in a row were skipped because a
                number was not finite. Weights and hyperparameters are then
                those before the first of them.
        """
        check_fit(x, outer_data, batch_size, outer_batch_size, steps_per_epoch)
        levels = dict(
            class_weight=class_weight,
            validation_split=validation_split,
            validation_data=validation_data,
            outer_data=outer_data,
        )
        folds = self.folds_of_fit(outer_data, outer_split, outer_folds)
        everything, is_refit = None, bool(folds) if refit is None else refit
        if is_refit:
            check_optimizer(self)
            everything = self.everything_of((x, y, sample_weight), **levels)
        data = self.data_of_fit(
            (x, y, sample_weight),
            outer_split=outer_split,
            outer_folds=folds,
            batch_size=batch_size,
            outer_batch_size=outer_batch_size,
            shuffle=shuffle,
            sources=sources,
            **levels,
        )
        arguments = keras_arguments | dict(
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            validation_batch_size=validation_batch_size or batch_size,
        )
        history = self._steps.fit(data, callbacks=callbacks, **arguments)
        if everything is not None:
            history.refit = refit_after(
                *(self, history, everything),
                batch_size=batch_size,
                shuffle=shuffle,
                validation_data=data.validation_data,
                **arguments,
            )
        return history
