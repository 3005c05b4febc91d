"""What a learner's `fit` watches while it trains, and says when it ends."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_hposgld.training.checks import check_learning_rate
from keras_hposgld.training.checks import check_schedule
from keras_hposgld.training.progress import lower_is_better
from keras_hposgld.training.verdict import Verdict


@contextlib.contextmanager
def joined(callbacks: Any, own: list) -> Iterator[Any]:
    """What to pass to Keras's `fit`: callbacks of the user, and then others.

    Args:
        callbacks: As in Keras's `fit`. A list of Keras's own is given back as
            it was.
        own: List of callbacks.
    """
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        given = keras.tree.flatten(callbacks or [])
        lower_is_better(given)
        yield [*given, *own]
        return
    before = list(callbacks.callbacks)
    lower_is_better(before)
    callbacks.callbacks.extend(own)
    callbacks.set_model(callbacks.model)
    callbacks.set_params(callbacks.params)
    try:
        yield callbacks
    finally:
        callbacks.callbacks[:] = before


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
        if self.is_first_epoch and params.get("steps") is not None:
            iterations = (params["epochs"] - epoch) * params["steps"]
            ahead = learner.steps_ahead(iterations)
            check_schedule(owners, learner.sampler, ahead)
        self.is_first_epoch = False
        check_learning_rate(owners, learner.sampler)


class WatchLearning(keras.callbacks.Callback):
    """Says at the end of a learner's `fit` what speaks against its result.

    Args:
        num_examples: Number of outer examples, infinite if nobody knows.
    """

    def __init__(self, num_examples: float):
        super().__init__()
        self.num_examples = num_examples

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

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.verdict.see(logs or {})

    def on_train_end(self, logs: Any = None) -> None:
        self.verdict.warn()
