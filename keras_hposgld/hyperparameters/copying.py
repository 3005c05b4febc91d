"""Learned hyperparameters carried from one model to another.

Each has a place: the address of its weight or layer in the model, or where its
loss stands in `compile`. What has the same place in both models is partners;
what has none is named, and then nothing is copied.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter

SAME = 1e-5  # the relative difference of values that are the same


def copy_hyperparameters(source: keras.Model, target: keras.Model) -> None:
    """Copies learned hyperparameters to another model of the same layers.

    Strengths of regularizers go by the layer and the weight, what layers learn
    by the layer, learned losses by their place in `compile`, a table of example
    weights to the table of the other learner. Each value is afterwards that of
    `source`. A strength under another `max_value` or `bijector` is converted,
    if the bound leaves room for it. Centers (`center="initial"`) stay: they are
    the weights that the target itself started from. Frozen weights have no
    hyperparameters; the initial weights of a `MetaModel` are weights.

    Args:
        source: Built `keras.Model` that has learned, or a `BilevelModel`.
        target: Built `keras.Model` with the same learnable regularizers, layers
            and losses, or a `BilevelModel`.

    Raises:
        ValueError: If one of them is not built or has no hyperparameters, if a
            hyperparameter of one has no partner in the other, or if partners
            differ in kind, granularity, shape or center, or cannot have the
            same value. All such are named, and nothing is copied.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    def make_model(strength):
        learnable = hs.regularizers.LearnableL2(strength)
        return keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(1, kernel_regularizer=learnable),
            ]
        )

    learned, fresh = make_model(0.3), make_model(0.1)
    hs.copy_hyperparameters(learned, fresh)
    (regularizer,) = hs.find_hyperparameters(fresh)
    (strengths,) = regularizer.hyperparameter_values().values()
    print(strengths)  # 0.3
    ```
    """
    known, own = _places("source", source), _places("target", target)
    if not own:
        raise ValueError(
            "`target` must have hyperparameters to copy to. Received: a model "
            "without learnable regularizers on trainable weights, layers or "
            "losses. Make it with `kernel_regularizer=` as the source was; or, "
            "for a model made without, attach them: "
            "`keras_hposgld.BilevelModel(target, regularizer=...)`."
        )
    faults = [
        f"{place} of `source` has no partner in `target`"
        for place in known
        if place not in own
    ]
    faults += [
        f"{place} of `target` has no partner in `source`"
        for place in own
        if place not in known
    ]
    pairs = [(p, known[p], own[p]) for p in own if p in known]
    with unchanged_on_error([part.variable for part in own.values()]):
        for place, old, new in pairs:
            fault = _difference(old, new) or _assign(old, new)
            if fault:
                faults.append(f"{place}: {fault}")
        if not faults:
            faults += _other_values(pairs)
        if faults:
            raise ValueError(
                "The hyperparameters of two models must be partners by their "
                "places and mean the same. Received: "
                + "; ".join(faults)
                + ". Make the target with the same layers, regularizers and "
                "losses, frozen alike."
            )


@contextlib.contextmanager
def unchanged_on_error(variables: list[keras.Variable]) -> Iterator[None]:
    """Gives variables back what they hold now, if an error comes."""
    before = [(v, np.array(v.numpy())) for v in variables]
    try:
        yield
    except BaseException:  # that of the keyboard, too
        for variable, value in before:
            variable.assign(value)
        raise


class _Part(NamedTuple):
    """A variable of a hyperparameter object."""

    variable: keras.Variable
    owner: Any
    center: Any = None  # of a penalty


def _places(name: str, model: keras.Model) -> dict[str, _Part]:
    """The hyperparameters of a model by their places."""
    # A learner has an outer level, and the model inside.
    inner = model.model if hasattr(model, "outer_level") else model
    if not inner.built:
        raise ValueError(
            f"`{name}` must be built: its weights decide which "
            f"hyperparameters there are. Received: {model!r}. Give it a "
            "`keras.Input`, or call it once."
        )
    with model.distribute_strategy.scope():  # as its weights were made
        owners = find_hyperparameters(model)
    addresses = weight_addresses(model) | weight_addresses(inner)
    losses = {
        id(part): "/".join(["loss", *map(str, path)])
        for path, part in keras.tree.flatten_with_path(
            getattr(model, "loss", None)
        )
    }
    places = {}
    for weight in inner.trainable_variables:
        penalty: Any = weight.regularizer
        owner = getattr(penalty, "owner", None)
        if isinstance(owner, WeightHyperparameter):
            for power, variable in penalty.strengths.items():
                place = f"{addresses[id(weight)]} ({power})"
                places[place] = _Part(variable, owner, penalty.center)
    for owner in owners:
        if not isinstance(owner, WeightHyperparameter):
            for number, variable in enumerate(owner.fixed_variables):
                home = losses.get(id(owner), type(owner).__name__)
                home += f"/{number}" if number else ""
                place = addresses.get(id(variable), home)
                places[place] = _Part(variable, owner)
    if name == "source" and not places:
        raise ValueError(
            "`source` must have hyperparameters. Received: a model without "
            "learnable regularizers on trainable weights, layers or losses."
        )
    return places


def _difference(old: _Part, new: _Part) -> str | None:
    """Why two variables cannot be partners, if so."""
    is_one_kind = type(old.owner) is type(new.owner)
    if not (is_one_kind or isinstance(old.owner, WeightHyperparameter)):
        kinds = [type(part.owner).__name__ for part in (old, new)]
        return f"is a {kinds[0]} in `source` and a {kinds[1]} in `target`"
    for what, one, other in (
        ("is of shape", tuple(old.variable.shape), tuple(new.variable.shape)),
        ("has granularity", old.owner.granularity, new.owner.granularity),
        ("pulls to", _center(old), _center(new)),
    ):
        if one != other:
            return f"{what} {one!r} in `source` and {other!r} in `target`"
    return None


def _center(part: _Part) -> str:
    return "zero" if part.center is None else "the initial weights"


def _assign(old: _Part, new: _Part) -> str | None:
    """Assigns what means the same, or says why it cannot."""
    number = tf.cast(old.variable.value, new.variable.dtype)
    if isinstance(old.owner, WeightHyperparameter):
        # For one variable alone: the owner may serve other weights as well.
        given: Any = old.owner
        taken = new.owner
        value = np.asarray(given.constrain(old.variable))
        if not _is_same(taken.constrain(number), value):
            number = taken.unconstrain(value, new.variable.dtype)
            if not (
                np.isfinite(number).all()
                and _is_same(taken.constrain(number), value)
            ):
                return (
                    f"has strengths up to {value.max():.3g} in `source`, and "
                    f"a bound of {taken.max_value} in `target`"
                )
    new.variable.assign(number)
    return None


def _other_values(pairs: list[tuple[str, _Part, _Part]]) -> list[str]:
    """Which of the objects that are no regularizers mean another value now.

    They say nothing of how a number becomes a value, so it is tried.
    """
    faults = []
    for place, old, new in pairs:
        if isinstance(old.owner, WeightHyperparameter):
            continue
        values = [
            list(part.owner.hyperparameter_values().values())
            for part in (old, new)
        ]
        if not all(map(_is_same, *values)):
            faults.append(
                f"{place}: the same number stands for another value in "
                "`source` than in `target`, whose bound is another one"
            )
    return faults


def _is_same(one: Any, other: Any) -> bool:
    one, other = np.asarray(one), np.asarray(other)
    return one.shape == other.shape and np.allclose(one, other, SAME, 0.0)
