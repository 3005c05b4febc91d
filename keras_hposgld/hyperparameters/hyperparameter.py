"""What all learnable hyperparameters share, and how a model's are found.

A hyperparameter is held as an *unconstrained* Keras variable that the
optimizer of the hyperparameters moves, and used as a *constrained* value (a
strength, a weight, a range). The variable is not trainable, so a plain
`model.fit` leaves it alone and uses the value as a constant.
"""

from collections.abc import Callable

import keras
import numpy as np


class Hyperparameter:
    """Base of the Keras objects that own learnable hyperparameters.

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

    def attach(self, weight: keras.Variable):
        """Settles that a weight is regularized; returns its penalty."""
        raise NotImplementedError

    def check_learning_rate(self, learning_rate: float) -> None:
        """Refuses inner steps that the values may outgrow, if any can."""


def is_kernel(weight: keras.Variable) -> bool:
    """Whether a weight is one that regularizers are meant for."""
    return weight.name.endswith("kernel")


def attach_regularizer(
    model: keras.Model,
    regularizer: Hyperparameter,
    choose: Callable | None = None,
) -> None:
    """Attaches a regularizer to weights of a built model that have none.

    One that comes from a file goes to the weights that it had been on.

    Args:
        model: Built `keras.Model`.
        regularizer: A learnable regularizer.
        choose: Function from a trainable weight to whether it is chosen.
            Defaults to `is_kernel`.
    """
    weights = [w for w in model.trainable_variables if w.regularizer is None]
    if regularizer.is_from_file:
        known = [w for w in weights if regularizer.waits_for(w)]
        # A subclassed model may have got other paths: then shapes must do.
        chosen = known or [
            w for w in weights if regularizer.waits_for(w, any_path=True)
        ]
    else:
        chosen = [w for w in weights if (choose or is_kernel)(w)]
    for weight in chosen:
        regularizer.attach(weight)


def find_hyperparameters(model: keras.Model) -> list[Hyperparameter]:
    """Finds the learnable hyperparameters of a built model.

    A regularizer creates its variables here if it has not yet been used, so
    this is also how to create them before `model.set_weights` or
    `model.load_weights`.

    Args:
        model: A built `keras.Model`. Only its trainable weights count.

    Returns:
        List of the objects that own hyperparameters, in the order of the
        model's weights, each once.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                2, kernel_regularizer=hs.regularizers.LearnableL2(1e-3)
            ),
        ]
    )
    (regularizer,) = hs.find_hyperparameters(model)
    assert regularizer.hyperparameter_variables[0].shape == (4, 2)
    ```
    """
    owners = {}
    for weight in model.trainable_variables:
        # Where a regularizer has been attached, Keras's attribute holds the
        # penalty of that one weight, which knows its owner.
        owner = getattr(weight.regularizer, "owner", weight.regularizer)
        if isinstance(owner, Hyperparameter):
            owner = owner.attach(weight).owner
            owners[id(owner)] = owner
    return list(owners.values())


def variables_of(owners: list[Hyperparameter]) -> list[keras.Variable]:
    """The unconstrained variables of hyperparameters, in a fixed order."""
    return [
        variable
        for owner in owners
        for variable in owner.hyperparameter_variables
    ]


def values_by_path(owners: list[Hyperparameter]) -> dict[str, np.ndarray]:
    """The constrained values of hyperparameters: `{path: NumPy array}`."""
    return {
        path: np.asarray(value)
        for owner in owners
        for path, value in owner.hyperparameter_values().items()
    }
