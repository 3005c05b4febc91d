"""What a learner's `fit` watches while it trains, and says when it ends."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras

from keras_hposgld.training.checks import check_learning_rate
from keras_hposgld.training.checks import check_schedule

# Adam moves a strength by at most its learning rate, in logarithms: 0.05 by
# default, so that ten updates change it by at most two thirds.
FEW_UPDATES = 10


@contextlib.contextmanager
def joined(callbacks: Any, own: list) -> Iterator[Any]:
    """What to pass to Keras's `fit`: callbacks of the user, and then others.

    Args:
        callbacks: As in Keras's `fit`. A list of Keras's own is given back as
            it was.
        own: List of callbacks.
    """
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        yield [*keras.tree.flatten(callbacks or []), *own]
        return
    before = list(callbacks.callbacks)
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


class WatchUpdates(keras.callbacks.Callback):
    """Warns at the end of a `fit` where next to nothing can be learned."""

    def on_train_end(self, logs: Any = None) -> None:
        learner = self.model
        outer_level = learner.outer_level
        updates = int(learner.hyper_optimizer.iterations.numpy())
        if updates >= FEW_UPDATES:
            return
        chains = int(outer_level.iterations.numpy())
        reasons = [f"{chains} chains have run since the learner was made"]
        if outer_level.warmup_steps:
            reasons.append(
                "those that start before inner step "
                f"{outer_level.warmup_steps} (`warmup_steps`) update nothing"
            )
        number = "once" if updates == 1 else f"{updates} times"
        warnings.warn(
            f"The hyperparameters were updated {number if updates else 'never'}"
            f", which is too few for anything to be learned: "
            f"{'; '.join(reasons)}. Train for more epochs, or let an epoch "
            "have more chains: pass a larger `steps_per_epoch`, smaller "
            "batches, or an estimator whose chains take fewer steps.",
            stacklevel=2,
        )
