"""What a `BilevelModel` is and keeps, apart from `compile` and `fit`."""

import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.checks import check_number
from keras_hposgld.data.elements import inputs_of
from keras_hposgld.data.everything import Everything
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.data.learned_weights import check_sources
from keras_hposgld.data.learned_weights import with_learned_weights
from keras_hposgld.hyperparameters.addresses import replace
from keras_hposgld.hyperparameters.discovery import attach_regularizer
from keras_hposgld.hyperparameters.discovery import attached_before
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.training import checks
from keras_hposgld.training import density
from keras_hposgld.training.bilevel_steps import BilevelSteps
from keras_hposgld.training.folds import FoldCopies
from keras_hposgld.training.memory_estimate import MemoryEstimate
from keras_hposgld.training.posterior_learner import PosteriorLearner
from keras_hposgld.training.refit import refit
from keras_hposgld.training.step_sizes import StepSizes
from keras_hposgld.training.weight_copies import WeightCopies


class BilevelLearner(PosteriorLearner):
    """A learner whose chains run on batches of two levels.

    Args:
        model: As in `BilevelModel`, like all of them.
        regularizer: A learnable regularizer or `None`.
        filter: Function or `None`.
        example_weights: `BatchWeights` or `None`.
        seed: Integer or `None`.
        name: String.
        outer_split: Float.
        outer_folds: Integer or `None`.
    """

    def __init__(
        self,
        model: keras.Model,
        regularizer: Any = None,
        filter: Callable | None = None,
        example_weights: Any = None,
        seed: int | None = None,
        name: str | None = None,
        outer_split: float = 0.0,
        outer_folds: int | None = None,
    ):
        super().__init__(model, seed=seed, name=name)
        checks.check_learnable(regularizer, example_weights)
        # Kept and saved by each learner of the model, whoever attached it.
        before = attached_before(model)
        if before is not None and regularizer not in (None, before):
            warnings.warn(
                "`regularizer` is left out: the model has learned strengths "
                "already, which an earlier learner or callback attached, and "
                f"learning goes on with those. Received: {regularizer!r}, and "
                f"{before!r}. Wrap a fresh model for other ones.",
                stacklevel=3,
            )
        self.regularizer = regularizer if before is None else before
        self.filter = filter
        self.example_weights = example_weights
        self.outer_split = check_number("outer_split", outer_split, below=1)
        self.outer_folds = checks.checked_folds(
            outer_folds, outer_split, example_weights
        )
        self.starting_weights = WeightCopies("starting_weights")
        self.fold_copies = FoldCopies()
        self.step_sizes = StepSizes()
        self._steps = BilevelSteps(self)
        if self.built:
            self.find_hyperparameters()

    def find_hyperparameters(self) -> list[Hyperparameter]:
        """The objects that own the hyperparameters of the built model."""
        used = attach_regularizer(self.model, self.regularizer, self.filter)
        if used is not self.regularizer:  # which serves another model
            replace(self, self.regularizer, used)
        return super().find_hyperparameters()

    @property
    def draws_exactly(self) -> bool:
        """Whether the last `fit` has drawn the weights, without steps."""
        return self._steps.draws is not None

    def _prepare(self) -> None:
        self._steps.prepare()

    def _needs_targets(self) -> tuple[bool, bool]:
        """Whether the inner and the outer objective take targets."""
        has_loss = self.plain_compile_arguments()["loss"] is not None
        return has_loss, has_loss or self.outer_level.outer_loss is not None

    def _weigh(self, *batch: Any) -> tuple:
        weights = self.example_weights
        return batch if weights is None else weights.weigh(*batch)

    def folds_of_fit(
        self, outer_data: Any, outer_split: Any, outer_folds: Any
    ) -> int | None:
        """The number of folds of a `fit` with these arguments, or `None`.

        Raises:
            ValueError: If folds are out of range, or do not go with the other
                arguments, the table of example weights, or the replicas.
        """
        is_free = outer_data is None and outer_split is None
        if outer_folds is None and is_free:
            outer_folds = self.outer_folds
        return checks.checked_folds(
            outer_folds,
            outer_split,
            self.example_weights,
            outer_data=outer_data,
            strategy=self.placement.strategy
            if self.placement.num_replicas > 1
            else None,
        )

    def everything_of(self, examples: tuple, **arguments: Any) -> Everything:
        """What a `fit` with these data ends with, see `Everything`."""
        return Everything(
            examples, example_weights=self.example_weights, **arguments
        )

    def data_of_fit(
        self,
        examples: tuple,
        *,
        outer_data: Any,
        outer_split: float | None,
        outer_folds: int | None,
        **arguments: Any,
    ) -> FitData:
        """The data of both levels of a `fit`; settles the seeds.

        Args:
            examples: Tuple `(x, y, sample_weight)`.
            outer_data: As in `fit`.
            outer_split: As in `fit`.
            outer_folds: What `folds_of_fit` returned.
            **arguments: As in `FitData.from_fit`.

        Raises:
            RuntimeError: If `compile` was not called.
            ValueError: If there are outer data that the estimator has no use
                for.
        """
        if not self.compiled:
            raise RuntimeError(
                "`compile(...)` must be called before `fit(...)`."
            )
        self.seed = self.placement.agreed(self.seed)
        self.sampler.seed = self.placement.agreed(self.sampler.seed)
        if outer_split is None and outer_data is None and not outer_folds:
            outer_split = self.outer_split
        needs_outer = self.hypergradient.needs_outer
        if not needs_outer:
            density.refuse_outer_data(
                self.hypergradient,
                outer_data=outer_data,
                outer_split=outer_split,
                outer_folds=outer_folds,
                outer_batch_size=arguments["outer_batch_size"],
            )
            arguments["default_batch_size"] = density.default_batch_size(
                examples[0]
            )
        return FitData.from_fit(
            examples,
            outer_data=outer_data,
            outer_split=outer_split or 0.0,
            outer_folds=outer_folds or 0,
            seed=self.seed,
            inputs=inputs_of(self.model),
            needs_targets=self._needs_targets(),
            needs_outer=needs_outer,
            example_weights=self.example_weights,
            **arguments,
        )

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
        return self._steps.memory_estimate()

    def steps_ahead(self, batches: int) -> range:
        first = int(self.optimizer.iterations.numpy())
        return range(first, first + batches)

    def train_step(self, data: Any) -> dict:
        """One outer iteration, on the stacked batches of one chain."""
        self._steps.run(*data)
        return self.get_metrics_result()

    def get_metrics_result(self) -> dict:
        """The logs, without `"outer_loss"` where there is none."""
        logs = super().get_metrics_result()
        if not self.hypergradient.needs_outer:
            logs.pop(self.outer_level.logs.loss.name, None)
        if self.sampler.takes_step_sizes:
            number = tf.convert_to_tensor(self.step_sizes.halvings.value)
            logs["halvings"] = tf.cast(number, tf.float32)
        return logs

    def state(self) -> dict[str, list[keras.Variable]]:
        """All variables that training resumes from, by what they are."""
        return super().state() | {
            "starting_weights": list(self.starting_weights.weights),
            "folds": list(self.fold_copies.weights),
            "step_sizes": list(self.step_sizes.weights),
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
            "outer_split": self.outer_split,
            "outer_folds": self.outer_folds,
        }

    def refit(
        self,
        x: Any = None,
        y: Any = None,
        *,
        optimizer: Any = None,
        sample_weight: Any = None,
        sources: Any = None,
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
            sample_weight: As in Keras. `None` (default): the learned
                `example_weights`, where there are any. Then `x` are the
                training data of `fit`: arrays, or a `tf.data.Dataset` of
                the same batches.
            sources: As in `fit`.
            **fit_arguments: Passed to the plain `keras.Model.fit`.

        Returns:
            `keras.callbacks.History` of the plain training.

        Raises:
            ValueError: If there are learned `example_weights`, and it cannot
                be told which example has which; if `optimizer` was used.
        """
        check_sources(sources, self.example_weights)
        x, y, weights = with_learned_weights(
            x, y, sample_weight, self.example_weights, self.model, sources
        )
        history = refit(
            *(self, optimizer, x, y), sample_weight=weights, **fit_arguments
        )
        # Folds that learn on begin where this has ended, all of them.
        self._steps.drop_folds()
        self.reset_posterior()
        return history
