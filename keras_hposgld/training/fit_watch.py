"""What a learner's `fit` watches while it trains, and says when it ends."""

from typing import Any

import keras

from keras_hposgld.data.level import Level
from keras_hposgld.training.batch_count import CountsBatches
from keras_hposgld.training.checks import check_learning_rate
from keras_hposgld.training.checks import check_schedule
from keras_hposgld.training.evidence_verdict import EvidenceVerdict
from keras_hposgld.training.progress import lower_is_better
from keras_hposgld.training.progress import shown_progress
from keras_hposgld.training.verdict import Verdict


def callbacks_of(
    learner: keras.Model,
    callbacks: Any,
    own: list,
    num_steps: int,
    arguments: dict,
) -> Any:
    """What to pass to Keras's `fit`: callbacks of the user, and then others.

    Args:
        learner: `BilevelModel` or `MetaModel`.
        callbacks: As in Keras's `fit`. A list of Keras's own stays as it is.
        own: List of callbacks.
        num_steps: Integer, the batches that a `train_step` takes.
        arguments: Dictionary, other arguments of that `fit`, whose steps are
            calls of `train_step`.
    """
    if isinstance(callbacks, keras.callbacks.CallbackList):
        lower_is_better(callbacks.callbacks)
        return CountsBatches(
            [TakeAverages(), callbacks, *own],
            num_steps,
            model=learner,
            **callbacks.params,
        )
    verbose = arguments.get("verbose", "auto")
    given = keras.tree.flatten(callbacks or [])
    lower_is_better(given)
    joined = [TakeAverages(), *given, *own, *shown_progress(given, verbose)]
    if num_steps == 1:  # Keras counts by itself, and may know how many come
        return joined
    return CountsBatches(
        joined,
        num_steps,
        model=learner,
        add_history=True,
        verbose=verbose,
        epochs=arguments.get("epochs", 1),
        steps=num_steps * arguments["steps_per_epoch"],
    )


class TakeAverages(keras.callbacks.Callback):
    """Ends a learner's `fit` with averages, where `use_ema` keeps some.

    It comes before the callbacks of the user, who may bring back the best.
    """

    def on_train_end(self, logs: Any = None) -> None:
        self.model.outer_level.end(self.model.hyperparameters)


class WatchLearningRate(keras.callbacks.Callback):
    """Checks `learning_rate * max_value < 1` for the steps ahead.

    A schedule is checked over all steps of the `fit` before the first of them;
    a rate that other callbacks set, when an epoch begins. It comes after them.
    """

    def on_train_begin(self, logs: Any = None) -> None:
        self.is_first_epoch = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        learner = self.model
        owners = learner.find_hyperparameters()
        params = self.params or {}  # a list of the user's may have none
        steps, epochs = params.get("steps"), params.get("epochs")
        if self.is_first_epoch and steps and epochs:
            ahead = learner.steps_ahead((epochs - epoch) * steps)
            check_schedule(
                owners, learner.sampler, ahead, learner.hypergradient
            )
        self.is_first_epoch = False
        check_learning_rate(owners, learner.sampler, learner.hypergradient)


class WatchLearning(keras.callbacks.Callback):
    """Says at the end of a learner's `fit` what speaks against its result.

    Args:
        num_examples: Number of outer examples, infinite if nobody knows.
        level: `Level`, the training data of a `BilevelModel`; else `None`.
    """

    def __init__(self, num_examples: float, level: Level | None = None):
        super().__init__()
        self.num_examples = num_examples
        self.level = level

    def on_train_begin(self, logs: Any = None) -> None:
        learner = self.model
        self.verdict = Verdict(
            learner.find_hyperparameters(),
            learner.outer_level,
            self.num_examples,
            advice="let an epoch have more chains: pass a larger "
            "`steps_per_epoch`, smaller batches, or an estimator whose chains "
            "take fewer steps",
        )
        self.on_evidence = None
        if self.level is not None and not learner.hypergradient.needs_outer:
            self.on_evidence = EvidenceVerdict(learner, self.level)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.verdict.see(logs or {})
        if self.on_evidence is not None:
            self.on_evidence.see()

    def on_train_end(self, logs: Any = None) -> None:
        self.verdict.warn()
        if self.on_evidence is not None:
            self.on_evidence.warn()
