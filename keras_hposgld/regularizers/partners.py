"""Which weight the strengths in a file are for.

Each set of strengths is saved with the address of its weight (see
`hyperparameters.addresses`) and its path. Nothing is matched by shape or by
order: where no partner is found, nobody guesses.
"""

from typing import Any

import keras

from keras_hposgld.hyperparameters.addresses import is_within
from keras_hposgld.hyperparameters.stores import read_text
from keras_hposgld.hyperparameters.stores import write_text
from keras_hposgld.regularizers.weight_penalty import WeightPenalty

ENTRIES = "entries"  # beside the variables, which Keras numbers


def by_address(
    waiting: list[WeightPenalty], address: str, known: set[str]
) -> WeightPenalty | None:
    """The strengths that a file has for a weight of a model.

    Args:
        waiting: List of penalties without a weight.
        address: The address of the weight in the model.
        known: The addresses of all weights of the model.

    Raises:
        ValueError: If one of the file's addresses is not in the model, so that
            it might have been meant for this weight.
    """
    for penalty in waiting:
        if penalty.address == address:
            return penalty
    # A model that was saved alone, and is a layer now; or the other way.
    strangers = [p for p in waiting if p.address not in known]
    candidates = [
        p
        for p in strangers
        if (
            is_within(p.address, address)
            if p.address
            else _ends_alike(p.path, address)
        )
    ]
    if len(candidates) == 1:
        return candidates[0]
    if strangers:
        raise ValueError(
            f"The file has no learned strengths for the weight at {address!r}, "
            "and has some for weights that this model does not have. Received: "
            f"strengths saved for {[p.address or p.path for p in strangers]}. "
            "Load the file into a model of the same layers."
        )
    return None


def by_path(
    waiting: list[WeightPenalty], weight: keras.Variable
) -> WeightPenalty | None:
    """The strengths for a weight of which only its path is known.

    Raises:
        ValueError: If there are strengths, and not exactly one set for it.
    """
    if not waiting:
        return None
    found = [p for p in waiting if p.path == weight.path] or [
        p for p in waiting if _ends_alike(p.path, weight.path)
    ]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"It cannot be told which learned strengths are those of the weight "
        f"{weight.path!r}. Received: a file with strengths for "
        f"{[p.path for p in waiting]}. Call "
        "`keras_hposgld.find_hyperparameters(model)` after loading: it knows "
        "the weights by their places in the model."
    )


def is_awaited(
    waiting: list[WeightPenalty], weight: keras.Variable, address: str
) -> bool:
    """Whether a weight is one of those that a file has strengths for."""
    return any(
        is_within(penalty.address, address)
        if penalty.address
        else _ends_alike(penalty.path, weight.path)
        for penalty in waiting
    )


def _ends_alike(path: str, other: str) -> bool:
    """Whether two paths end with the same layer and weight."""
    return path.split("/")[-2:] == other.split("/")[-2:]


def described(penalties: list[WeightPenalty]) -> list[dict]:
    """What a file says of penalties, their values left out."""
    return [
        {
            "address": penalty.address,
            "path": penalty.path,
            "shape": list(penalty.shape),
            "dtype": penalty.variables[0].dtype,
            "has_scale": penalty.scale is not None,
            "has_mixture": penalty.mixture is not None,
        }
        for penalty in penalties
    ]


def write(store, penalties: list[WeightPenalty]) -> None:
    """Writes strengths into a store of Keras's."""
    variables = [v for penalty in penalties for v in penalty.variables]
    for number, variable in enumerate(variables):
        store[str(number)] = variable.numpy()
    write_text(store, ENTRIES, described(penalties))


def entries_of(store) -> list[dict] | None:
    """What `described` the strengths in a store; `None` in old files."""
    return read_text(store, ENTRIES)


def of_entry(penalties: list[WeightPenalty], entry: dict) -> Any:
    """The penalty that an entry of a file is for, `None` if it is not there."""
    shape = tuple(entry["shape"])
    for penalty in penalties:
        is_meant = (
            penalty.address == entry["address"]
            if penalty.address and entry["address"]
            else _ends_alike(penalty.path, entry["path"])
        )
        if is_meant:
            if penalty.shape != shape:
                raise ValueError(
                    f"The file has strengths for {entry['path']!r} of shape "
                    f"{shape}, which has other ones now. Received: a weight of "
                    f"shape {penalty.shape}."
                )
            return penalty
    return None


def check_loaded(penalties: list[WeightPenalty], loaded: list) -> None:
    """Checks that the strengths of all weights were in a file.

    Raises:
        ValueError: If some were not.
    """
    missing = [p.path for p in penalties if not any(p is q for q in loaded)]
    if missing:
        raise ValueError(
            "The file has no learned strengths for some of the weights that "
            f"this regularizer serves. Received: weights {missing}, and "
            f"strengths for {[p.path for p in loaded]}. Load it into a model "
            "that is made, frozen and regularized like the one that was saved."
        )
