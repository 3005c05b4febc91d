"""Several votes on each example, some of them missing."""

from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf


class Votes(NamedTuple):
    """The votes of a batch, one after the other.

    Attributes:
        targets: Tensor `(votes,)`.
        rows: Integer tensor `(votes,)`: the example that each is about.
        sources: Integer tensor `(votes,)`: who gave it.
        is_given: Boolean tensor `(votes,)`: all true, but for the one entry
            of a batch without votes, lest that be empty.
    """

    targets: tf.Tensor
    rows: tf.Tensor
    sources: tf.Tensor
    is_given: tf.Tensor


def votes_in(y: Any) -> Votes:
    """The votes of a batch.

    Args:
        y: Tensor `(batch, num_sources)`: a class, or a number, by each source.
            Where a source abstains, an integer is below 0, a float is NaN.
    """
    y = tf.convert_to_tensor(y)
    given = y >= 0 if y.dtype.is_integer else ~tf.math.is_nan(y)
    given = tf.reshape(given, [-1])
    is_first = tf.range(tf.size(given)) == 0
    places = tf.where(given | (is_first & ~tf.reduce_any(given)))[:, 0]
    is_given = tf.gather(given, places)
    targets = tf.gather(tf.reshape(y, [-1]), places)
    return Votes(
        tf.where(is_given, targets, tf.zeros_like(targets)),
        places // y.shape[1],
        places % y.shape[1],
        is_given,
    )


def check_votes(y: Any, num_sources: int) -> None:
    """Checks an array of votes.

    Args:
        y: As in `votes_in`.
        num_sources: Integer.

    Raises:
        ValueError: If it is of another shape or kind, or if nobody votes.
    """
    received = _shape_and_dtype(y)
    if received is None or (
        len(received[0]) != 2
        or received[0][1] != num_sources
        or received[1] not in "iuf"
    ):
        what = type(y).__name__ if received is None else f"shape {received[0]}"
        raise ValueError(
            '`sources="votes"` needs targets (examples, sources): integers, '
            "-1 where a source abstains, or floats, NaN where it does. "
            f"Received: targets of {what} and {num_sources} sources."
        )
    if not isinstance(y, tf.TensorSpec) and not np.any(votes_in(y).is_given):
        raise ValueError(
            '`sources="votes"` needs a vote. Received: targets in which every '
            "source abstains on every example."
        )


def _shape_and_dtype(y: Any) -> tuple | None:
    """The shape, and the kind of number; `None` for a structure."""
    if isinstance(y, dict | list | tuple) or y is None:
        return None
    dtype = tf.as_dtype(getattr(y, "dtype", np.asarray(y).dtype))
    return tuple(y.shape), np.dtype(dtype.as_numpy_dtype).kind


def expand_votes(x: Any, votes: Any) -> tuple[Any, np.ndarray, np.ndarray]:
    """Makes an example of each vote.

    For a plain `fit`, which takes one target an example.

    Args:
        x: Structure of arrays `(n, ...)`, the inputs.
        votes: Array `(n, num_sources)`: what each source says. Integers, below
            0 where a source abstains; or floats, NaN where it does.

    Returns:
        The inputs `(m, ...)`, the target `(m,)` and the source `(m,)` of each
        of the m votes, in the order of the examples.

    Raises:
        ValueError: If `votes` have another shape or dtype, or hold no vote.

    Example:

    ```python
    import keras_hposgld as hs
    import numpy as np

    x = np.array([[0.1], [0.2]])
    votes = np.array([[1, -1, 0], [2, -1, -1]])
    x, y, sources = hs.data.expand_votes(x, votes)
    print(x.tolist(), y, sources)  # [[0.1], [0.1], [0.2]] [1 0 2] [0 2 0]
    ```
    """
    votes = np.asarray(votes)
    check_votes(votes, votes.shape[-1] if votes.ndim == 2 else 0)
    found = votes_in(votes)
    rows = found.rows.numpy()
    taken = keras.tree.map_structure(lambda part: np.asarray(part)[rows], x)
    return taken, found.targets.numpy(), found.sources.numpy()
