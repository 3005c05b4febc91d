"""How the learnable hyperparameters of a model are found."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_hposgld.hyperparameters.addresses import all_layers
from keras_hposgld.hyperparameters.addresses import replace
from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter


def priors_of(model: keras.Model, weights: list) -> list:
    """What knows the normalizers of the priors that are learned of weights.

    Each has a `log_normalizer`: the penalties of the weights, and those that
    own hyperparameters beside them.

    Args:
        model: Built `keras.Model`.
        weights: List of variables, its trainable weights.
    """
    penalties = [
        weight.regularizer
        for weight in weights
        if isinstance(
            getattr(weight.regularizer, "owner", None), WeightHyperparameter
        )
    ]
    others = [o for o in find_hyperparameters(model) if not o.is_about_weights]
    return [*penalties, *others]


def is_kernel(weight: keras.Variable) -> bool:
    """Whether a weight is one that regularizers are meant for."""
    return weight.name.endswith("kernel")


def attach_regularizer(
    model: keras.Model,
    regularizer: WeightHyperparameter | None,
    choose: Callable | None = None,
) -> Any:
    """Attaches a regularizer to weights of a built model that have none.

    One that comes from a file goes to the weights that it had been on.

    Args:
        model: Built `keras.Model`.
        regularizer: A learnable regularizer, or `None` for nothing.
        choose: Function from a trainable weight to whether it is chosen.
            Defaults to `is_kernel`.

    Returns:
        The regularizer that was attached: `regularizer` itself, or a copy if
        it serves another model by now.
    """
    if regularizer is None:
        return None
    used = regularizer.for_model(model.weights)
    used.is_from_outside = True
    weights = [w for w in model.trainable_variables if w.regularizer is None]
    if not used.is_from_file:
        weights = [w for w in weights if (choose or is_kernel)(w)]
    if weights:
        addresses = weight_addresses(model)
        known = set(addresses.values())
        for weight in weights:
            address = addresses[id(weight)]
            if not used.is_from_file or used.waits_for(weight, address):
                used.attach(weight, address, known)
    return used


def attached_before(model: keras.Model) -> WeightHyperparameter | None:
    """The regularizer that an earlier learner attached to a model, if any."""
    owners = {
        id(owner): owner
        for weight in model.weights
        for owner in [getattr(weight.regularizer, "owner", None)]
        if isinstance(owner, WeightHyperparameter) and owner.is_from_outside
    }
    return next(iter(owners.values())) if len(owners) == 1 else None


def find_hyperparameters(model: keras.Model) -> list[Hyperparameter]:
    """Finds the learnable hyperparameters of a built model.

    A regularizer creates its variables here if it has not yet been used, so
    this is also how to create them before `model.set_weights` or
    `model.load_weights`. One that serves another model already stays with
    that, and a copy of it takes its place in this one: each model has strengths
    of its own.

    Args:
        model: A built `keras.Model`. Of its weights only the trainable ones
            count.

    Returns:
        List of the objects that own hyperparameters, each once: regularizers
        in the order of the model's weights, layers in the order of the model,
        losses that it was compiled with.

    Raises:
        ValueError: If strengths were loaded from a file, and a weight of the
            model cannot be found among those that the file names; or if a
            learnable regularizer is an `activity_regularizer`.

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
    own = getattr(model, "find_hyperparameters", None)
    return own() if callable(own) else owners_in(model, model)


def owners_in(trainer: keras.Model, model: keras.Model) -> list[Hyperparameter]:
    """The objects that own hyperparameters, of a learner or of a plain model.

    Args:
        trainer: `keras.Model` that is compiled; its layers and losses count.
        model: Built `keras.Model`: `trainer`, or the model that it wraps. Its
            weights count, and have their addresses in it.
    """
    _refuse_of_activities(model)
    _settle_owners(trainer, model)
    owners: dict[int, Hyperparameter] = {}
    for weight in model.trainable_variables:
        # Keras's attribute holds the penalty of that one weight, which knows
        # its owner.
        owner = getattr(weight.regularizer, "owner", None)
        if isinstance(owner, WeightHyperparameter):
            owners[id(owner)] = owner
    losses = keras.tree.flatten(getattr(trainer, "loss", None))
    for part in [*all_layers(trainer), *losses]:
        is_owner = isinstance(part, Hyperparameter)
        if is_owner and not isinstance(part, WeightHyperparameter):
            owners[id(part)] = part
    return list(owners.values())


def _refuse_of_activities(model):
    """Refuses what is for weights in a place for outputs, where it cannot be.

    Raises:
        ValueError: If a layer has a learnable regularizer of its outputs.
    """
    for layer in all_layers(model):
        regularizer = getattr(layer, "activity_regularizer", None)
        if isinstance(regularizer, WeightHyperparameter):
            raise ValueError(
                "`activity_regularizer` must not be a learnable regularizer, "
                "whose strengths belong to weights. Received: "
                f"activity_regularizer={regularizer!r} of the layer "
                f"{layer.name!r}. Put "
                "`keras_hposgld.layers.LearnableActivityPenalty()` after it."
            )


def _settle_owners(trainer, model):
    """Gives each regularized weight of a model its own penalty."""
    weights = [
        weight
        for weight in model.trainable_variables
        if isinstance(weight.regularizer, WeightHyperparameter)
    ]
    # Penalties that a plain `fit` has called first know a path alone.
    placeless = [
        weight
        for weight in model.trainable_variables
        if getattr(weight.regularizer, "address", "") is None
    ]
    if not weights and not placeless:
        return
    addresses = weight_addresses(model)
    for weight in placeless:
        weight.regularizer.address = addresses[id(weight)]
    known = set(addresses.values())
    used = {}
    for weight in weights:
        regularizer: Any = weight.regularizer
        if id(regularizer) not in used:
            owner = regularizer.for_model(model.weights)
            used[id(regularizer)] = owner
            if owner is not regularizer:
                replace(trainer, regularizer, owner)
        used[id(regularizer)].attach(weight, addresses[id(weight)], known)


def is_kept_by(model: keras.Model, owner: Hyperparameter) -> bool:
    """Whether Keras saves an owner of hyperparameters with a model.

    It does not save a loss, nor a regularizer that no layer holds.
    """
    return any(layer is owner for layer in all_layers(model))


def not_owned(
    variables: list[keras.Variable], model: keras.Model
) -> list[keras.Variable]:
    """Those variables which no hyperparameter object of a model owns."""
    owners: list[Any] = [
        layer
        for layer in all_layers(model)
        if isinstance(layer, Hyperparameter)
    ]
    owners += find_hyperparameters(model)
    owned = {
        id(variable) for owner in owners for variable in owner.fixed_variables
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
