"""Counting in batches, where a step of Keras takes the batches of a chain."""

import math
import warnings
from typing import Any

import keras


class CountsBatches(keras.callbacks.CallbackList):
    """Keras's list of callbacks, told of batches and not of chains.

    Keras counts calls of `train_step`, and each takes a whole chain. What
    counts batches (the progress bar, `save_freq` of a checkpoint, a schedule of
    the user's) is told of the first batch of a chain when it begins, and of
    the last when it ends, as with `steps_per_execution` in Keras.

    Args:
        callbacks: List of Keras callbacks; a `CallbackList` may be among them.
        num_steps: Integer, the batches of a chain.
        **arguments: As in `keras.callbacks.CallbackList`; `steps` are batches.
    """

    def __init__(self, callbacks: list, num_steps: int, **arguments: Any):
        self.num_steps = num_steps
        super().__init__(callbacks, **arguments)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_begin(batch * self.num_steps, logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        super().on_train_batch_end((batch + 1) * self.num_steps - 1, logs)


def chains_of(batches: int, num_steps: int) -> int:
    """How many chains take so many batches, the last of them filled up."""
    return math.ceil(batches / num_steps)


def chains_of_epoch(steps_per_epoch: int, num_steps: int) -> int:
    """The chains of an epoch of so many batches; says if they take more.

    Args:
        steps_per_epoch: Integer, the batches that were asked for.
        num_steps: Integer, the batches of a chain.
    """
    chains = chains_of(steps_per_epoch, num_steps)
    if chains * num_steps != steps_per_epoch:
        warnings.warn(
            "`steps_per_epoch` counts batches, as in Keras, and is rounded up "
            f"to whole chains: an epoch takes {chains * num_steps} batches. "
            f"Received: steps_per_epoch={steps_per_epoch}, and chains of "
            f"{num_steps} batches. Pass a multiple of {num_steps}, or an "
            "estimator with shorter chains.",
            stacklevel=4,
        )
    return chains
