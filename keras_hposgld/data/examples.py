"""Arrays of examples, cut in two."""

import math

import keras

from keras_hposgld.data.kinds import yields_batches


def check_splits(examples: tuple, **fractions: float) -> None:
    """Checks that there are arrays where something is to be cut off.

    Args:
        examples: Tuple whose first entry are the inputs.
        **fractions: The shares to cut off, by the names of their arguments.

    Raises:
        ValueError: If there are none.
    """
    if not yields_batches(examples[0]):
        return
    for name, fraction in fractions.items():
        if fraction:
            raise ValueError(
                f"`{name}` needs arrays. Received: {name}={fraction!r} and a "
                f"{type(examples[0]).__name__}. Split the data yourself."
            )


def split_off(
    examples: tuple, fraction: float, name: str
) -> tuple[tuple, tuple]:
    """Cuts the last part off a tuple of arrays, as Keras does for validation.

    Args:
        examples: Tuple of structures of arrays with one length, or of `None`.
        fraction: Float, the share of the last part.
        name: What the user calls this share.

    Returns:
        The first part and the last part.

    Raises:
        ValueError: If `fraction` leaves nothing on either side.
    """
    length = len(keras.tree.flatten(examples)[0])
    cut = math.floor(length * (1.0 - fraction))
    if not 0.0 < fraction < 1.0 or not 0 < cut < length:
        raise ValueError(
            f"`{name}` must leave examples on both sides. "
            f"Received: {name}={fraction} of {length} examples."
        )

    def part(rows):
        return keras.tree.map_structure(
            lambda array: None if array is None else array[rows], examples
        )

    return part(slice(cut)), part(slice(cut, None))
