"""The course of one `fit` with `LearnHyperparameters`: its logs, its end."""

import inspect

import keras
import numpy as np

from keras_hposgld.callbacks.chains import Chains
from keras_hposgld.callbacks.checks import warn_that_no_chain_ran
from keras_hposgld.hyperparameters.discovery import variables_of
from keras_hposgld.training.progress import COUNTERS
from keras_hposgld.training.progress import lower_is_better
from keras_hposgld.training.progress import median_strength
from keras_hposgld.training.verdict import Verdict


class Course:
    """What a callback writes into the logs, and says when a `fit` ends.

    Args:
        model: `keras.Model`.
        owners: The objects that own its hyperparameters.
        chains: `Chains`, which have begun.
    """

    def __init__(self, model: keras.Model, owners: list, chains: Chains):
        self.model = model
        self.owners = owners
        self.chains = chains
        self.num_at_start = chains.num_done
        self.verdict = Verdict(
            owners,
            chains.outer_level,
            chains.data.levels[-1].num_known,
            advice="lower `every` or the `batch_size` of `fit`",
        )
        self._latest: dict[str, float] = {}
        lower_is_better(_callbacks_of_fit())

    def begin_epoch(self) -> None:
        """Prepares the means over an epoch."""
        self._num_before = self.chains.num_done
        for metric in self.chains.outer_level.metrics:
            metric.reset_state()

    def end_epoch(self, logs: dict) -> None:
        """Adds to the logs of an epoch."""
        is_news = self.chains.num_done > self._num_before
        for metric in self.chains.outer_level.metrics:
            name = metric.name
            if is_news:
                self._latest[name] = float(metric.result())
            elif name in COUNTERS:
                self._latest[name] = 0.0
            logs[name] = self._latest.get(name, np.nan)
        if "val_loss" in logs and self.chains.outer_level.outer_loss is None:
            logs["val_outer_loss"] = logs["val_loss"] - self._penalty()
        median = median_strength(self.owners)
        if median is not None:
            logs["median_strength"] = median
        self.verdict.see(logs)

    def _penalty(self) -> float:
        """What the regularization of the weights adds to Keras's loss."""
        return sum(
            float(weight.regularizer(weight))
            for weight in self.model.trainable_variables
            if weight.regularizer is not None
        )

    def end(self, num_batches: int) -> None:
        """Says what has to be said.

        Args:
            num_batches: Integer, those of all fits.
        """
        self.chains.outer_level.end(variables_of(self.owners))
        if self.chains.num_done == self.num_at_start:
            warn_that_no_chain_ran(self.chains, num_batches)
        else:
            self.verdict.warn()


def _callbacks_of_fit() -> list:
    """All callbacks of the `fit` that is calling one of them.

    Keras tells no callback of the others. Its list of them calls each, so it
    is one of the callers; where it is not, there is nothing to return.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            return caller.callbacks
        frame = frame.f_back
    return []
