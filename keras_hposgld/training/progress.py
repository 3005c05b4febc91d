"""What a `fit` shows of the outer level while it goes on."""

from typing import Any

import keras
import numpy as np

from keras_hposgld.hyperparameters.discovery import values_by_path
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter

COUNTERS = ("skipped_updates", "halvings")  # of what should not happen
MOST = 100_000  # strengths of a weight that a median is taken of


def without_zeros(logs: dict | None) -> dict:
    """Logs as they are shown: a counter that counted nothing is left out."""
    return {
        key: value
        for key, value in (logs or {}).items()
        if key not in COUNTERS or float(value) != 0.0
    }


def median_strength(owners: list) -> float | None:
    """The median of the strengths of all weights, `None` if there are none.

    Args:
        owners: The objects that own the hyperparameters.
    """
    strengths = [
        np.ravel(value)[:: 1 + value.size // MOST]
        for owner in owners
        if isinstance(owner, WeightHyperparameter)
        for value in values_by_path([owner]).values()
    ]
    return float(np.median(np.concatenate(strengths))) if strengths else None


class ShownProgress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar, with a median strength and without zero counters.

    It belongs to a learner. The logs and the history stay as they are.
    """

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end(batch, without_zeros(logs))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        shown = without_zeros(logs)
        median = median_strength(self.model.find_hyperparameters())
        if median is not None:
            shown["median_strength"] = median
        super().on_epoch_end(epoch, shown)


def shown_progress(callbacks: list, verbose: Any) -> list:
    """The progress bar to add to callbacks, as Keras would add its own.

    Args:
        callbacks: List of Keras callbacks.
        verbose: As in Keras's `fit`.
    """
    has_one = any(
        isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks
    )
    return [] if has_one or verbose == 0 else [ShownProgress()]


def lower_is_better(callbacks: list) -> None:
    """Tells callbacks that watch an outer loss to look for a low one.

    Keras knows that of `val_loss`, and asks for `mode="min"` otherwise.

    Args:
        callbacks: List of Keras callbacks.
    """
    for callback in callbacks:
        watched = str(getattr(callback, "monitor", "")).removeprefix("val_")
        is_open = getattr(callback, "mode", None) == "auto"
        if watched == "outer_loss" and is_open:
            callback.mode = "min"
