"""How the learnable hyperparameters of a model are found."""

from collections.abc import Callable

import keras
import numpy as np

from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter


def is_kernel(weight: keras.Variable) -> bool:
    """Whether a weight is one that regularizers are meant for."""
    return weight.name.endswith("kernel")


def attach_regularizer(
    model: keras.Model,
    regularizer: WeightHyperparameter | None,
    choose: Callable | None = None,
) -> None:
    """Attaches a regularizer to weights of a built model that have none.

    One that comes from a file goes to the weights that it had been on.

    Args:
        model: Built `keras.Model`.
        regularizer: A learnable regularizer, or `None` for nothing.
        choose: Function from a trainable weight to whether it is chosen.
            Defaults to `is_kernel`.
    """
    if regularizer is None:
        return
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
        model: A built `keras.Model`. Of its weights only the trainable ones
            count.

    Returns:
        List of the objects that own hyperparameters, each once: regularizers
        in the order of the model's weights, layers in the order of the model,
        losses that it was compiled with.

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
        if isinstance(owner, WeightHyperparameter):
            owner = owner.attach(weight).owner
            owners[id(owner)] = owner
    losses = keras.tree.flatten(getattr(model, "loss", None))
    for part in [*all_layers(model), *losses]:
        is_owner = isinstance(part, Hyperparameter)
        if is_owner and not isinstance(part, WeightHyperparameter):
            owners[id(part)] = part
    return list(owners.values())


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model, the nested ones, too."""
    # Private to Keras, whose `layers` leaves out the layers within a layer.
    return model._flatten_layers()


def not_owned(
    variables: list[keras.Variable], model: keras.Model
) -> list[keras.Variable]:
    """Those variables which no hyperparameter object of a model owns."""
    owned = {
        id(variable)
        for owner in find_hyperparameters(model)
        for variable in owner.fixed_variables
    }
    return [variable for variable in variables if id(variable) not in owned]


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
