"""The learning rate of the hyperparameters, in the course of a `fit`.

At a constant rate Adam goes on moving every hyperparameter by about the rate,
whichever way the last batches point. So the rate goes to zero with the end of
training, on half a cosine.
"""

import math

import keras

RATE = 0.1
TIMES_IN_FIT = 200  # how often it is set: no step waits for it


class RateOfLearning:
    """Sets the learning rate of an optimizer by how much of a `fit` is done.

    Args:
        optimizer: Keras optimizer.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self.optimizer = optimizer
        self._next = 0.0

    def begin(self) -> None:
        """Begins with a `fit`."""
        self._next = 0.0

    def set_for(
        self, epoch: int, batch: int, epochs: int, batches: int | None
    ) -> None:
        """Sets the rate before a batch.

        Args:
            epoch: Integer, that of now.
            batch: Integer: the batches of this epoch before this one.
            epochs: Integer, those of the whole `fit`.
            batches: Integer, those of an epoch; `None` as long as nobody
                knows, and then the rate is that of the epoch's beginning.
        """
        part = min(batch / batches, 1.0) if batches else 0.0
        done = (epoch + part) / epochs
        if done < self._next:
            return
        self._next = done + 1.0 / TIMES_IN_FIT
        self.optimizer.learning_rate = (
            RATE * (1.0 + math.cos(math.pi * min(done, 1.0))) / 2.0
        )
