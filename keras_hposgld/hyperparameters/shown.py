"""What a learner shows of its hyperparameters, whatever kind of learner."""

import abc
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_hposgld.hyperparameters.discovery import values_by_path
from keras_hposgld.hyperparameters.discovery import variables_of
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.summary import frame_of
from keras_hposgld.hyperparameters.summary import summarize


class ShowsHyperparameters(abc.ABC):
    """Base of what finds hyperparameters: the models, and the callback."""

    @abc.abstractmethod
    def find_hyperparameters(self) -> list[Hyperparameter]:
        """The objects that own the hyperparameters of the built model."""

    @property
    def hyperparameters(self) -> list[keras.Variable]:
        """The unconstrained variables, in the order of the weights."""
        return variables_of(self.find_hyperparameters())

    def hyperparameter_values(self) -> dict[str, np.ndarray]:
        """The constrained values: `{path: NumPy array}`."""
        return values_by_path(self.find_hyperparameters())

    def hyperparameter_summary(self, print_fn: Callable | None = None) -> None:
        """Prints path, granularity, number, minimum, median and maximum.

        Args:
            print_fn: Function of a string, called for each line. Defaults to
                `print`.
        """
        for line in summarize(self.find_hyperparameters()):
            (print_fn or print)(line)

    def hyperparameter_frame(self) -> Any:
        """The same table as a `pandas.DataFrame`, a row for each path.

        Raises:
            ImportError: If pandas is not installed.
        """
        return frame_of(self.find_hyperparameters())
