"""What a learner shows of the hyperparameters of its model."""

import keras
import numpy as np

from keras_hposgld.hyperparameters.hyperparameter import attach_regularizer
from keras_hposgld.hyperparameters.hyperparameter import find_hyperparameters
from keras_hposgld.hyperparameters.hyperparameter import values_by_path
from keras_hposgld.hyperparameters.hyperparameter import variables_of
from keras_hposgld.hyperparameters.summary import summarize


class LearnedHyperparameters:
    """Mixin of `BilevelModel` and `callbacks.LearnHyperparameters`.

    Attributes:
        model: Built `keras.Model`.
        regularizer: Learnable regularizer to attach to it, or `None`.
        filter: Function that chooses the weights for it, or `None`.
    """

    def find_hyperparameters(self) -> list:
        """The objects that own the hyperparameters of the built model."""
        if self.regularizer is not None:
            attach_regularizer(self.model, self.regularizer, self.filter)
        # A learner that is a model itself has more: the loss that it was
        # compiled with, a table of example weights.
        is_model = isinstance(self, keras.Model)
        return find_hyperparameters(self if is_model else self.model)

    @property
    def hyperparameters(self) -> list[keras.Variable]:
        """The unconstrained variables, in the order of the weights."""
        return variables_of(self.find_hyperparameters())

    def hyperparameter_values(self) -> dict[str, np.ndarray]:
        """The constrained values: `{path: NumPy array}`."""
        return values_by_path(self.find_hyperparameters())

    def hyperparameter_summary(self, print_fn=None) -> None:
        """Prints path, granularity, number, minimum, median and maximum.

        Args:
            print_fn: Function of a string, called for each line. Defaults to
                `print`.
        """
        for line in summarize(self.find_hyperparameters()):
            (print_fn or print)(line)
