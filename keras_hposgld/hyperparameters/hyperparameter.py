"""What all learnable hyperparameters share.

A hyperparameter is held as an *unconstrained* Keras variable that the
optimizer of the hyperparameters moves, and used as a *constrained* value (a
strength, a weight, a range). The variable is not trainable, so a plain
`model.fit` leaves it alone and uses the value as a constant.
"""

import keras


class Hyperparameter:
    """Base of the Keras objects that own learnable hyperparameters.

    A layer, a loss, a table of weights: whatever inherits from this and is
    part of a model, or of what it was compiled with, is found, learned, saved
    and shown by the same code.

    Attributes:
        granularity: String: what has a value of its own.
    """

    granularity: str

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        """The unconstrained variables, in a fixed order."""
        raise NotImplementedError

    def hyperparameter_values(self) -> dict:
        """The constrained values, a tensor for each variable, by path."""
        raise NotImplementedError

    @property
    def fixed_variables(self) -> list[keras.Variable]:
        """All variables of the object that no inner step changes."""
        return self.hyperparameter_variables

    def check_learning_rate(
        self, learning_rate: float, scale: float | None = 1.0
    ) -> None:
        """Refuses inner steps that the values may outgrow, if any can.

        Args:
            learning_rate: Float, that of the sampler.
            scale: Float, by how much a step of the sampler may exceed it;
                `None` where the step adapts to the gradient.
        """


class WeightHyperparameter(Hyperparameter):
    """Base of what belongs to single weights: the learned regularizers.

    Attributes:
        is_from_file: Whether a file has said which weights it is for.
    """

    is_from_file = False

    def attach(self, weight: keras.Variable):
        """Settles that a weight is regularized; returns its penalty."""
        raise NotImplementedError

    def waits_for(self, weight: keras.Variable, any_path: bool = False) -> bool:
        """Whether a weight is one that a file has named, or like one."""
        return False
