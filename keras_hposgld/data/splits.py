"""Examples divided between the two levels.

Weights are trained on one part, hyperparameters are judged on the other, so
both are to be alike: the parts are drawn at random, and of each class in the
share of the whole. A part keeps the order that the examples had. The draw is a
function of the number of examples, the classes and the seed alone.
"""

import math
import numbers
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_seed
from keras_hposgld.data.examples import check_splits

STRATIFY = ("auto", True, False)


def split(
    x: Any,
    y: Any,
    fraction: float,
    *,
    sample_weight: Any = None,
    stratify: bool | str = "auto",
    seed: int = 0,
) -> tuple[tuple, tuple]:
    """Divides examples into training and outer data, at random.

    `BilevelModel.fit(outer_split=...)` calls it, with the seed of the learner.

    Args:
        x: Array, tensor, pandas frame, or a structure of them: the inputs.
        y: The same of the targets, or `None`.
        fraction: Float in (0, 1): the share of the outer data.
        sample_weight: The same of the weights of the examples, or `None`.
        stratify: `True`: the outer data have the share `fraction` of each
            class, rounded; a class with a single example stays in the training
            data. It takes one array of targets, whose distinct values are the
            classes, or whose rows are one-hot. `False`: whatever is drawn.
            `"auto"` (default): `True` where the targets are one column of
            integers, booleans or strings, or one-hot rows, and the training
            data have room for an example of each class.
        seed: Integer `>= 0`. Equal seeds give equal parts.

    Returns:
        Two tuples, the training data and the outer data: `(x, y)`, or
        `(x, y, sample_weight)` if there are weights. Each keeps the order and
        the types of what was given.

    Raises:
        ValueError: If there are no arrays, if they differ in length, if
            `fraction` leaves nothing on either side, or if `stratify=True`
            finds no classes or more than there is room for.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    x, y = np.random.normal(size=(100, 5)), np.repeat([0, 1], [90, 10])
    (x, y), (x_outer, y_outer) = hs.data.split(x, y, 0.2)
    assert y.sum() == 8 and y_outer.sum() == 2

    strength = hs.regularizers.LearnableL2(granularity="input")
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(1, "sigmoid", kernel_regularizer=strength),
        ]
    )
    model.compile("adam", loss="binary_crossentropy")
    learning = hs.callbacks.LearnHyperparameters(outer_data=(x_outer, y_outer))
    model.fit(x, y, epochs=2, callbacks=[learning], verbose=0)
    ```
    """
    check_known("stratify", stratify, STRATIFY)
    given = (x, y) if sample_weight is None else (x, y, sample_weight)
    return split_examples(given, fraction, "fraction", stratify, seed)


def split_examples(
    examples: tuple,
    fraction: float,
    name: str,
    stratify: bool | str = "auto",
    seed: int = 0,
) -> tuple[tuple, tuple]:
    """The same, of a tuple that begins with inputs and targets.

    Args:
        examples: Tuple of structures of arrays, or of `None`.
        fraction: As in `split`.
        name: What the user calls this share.
        stratify: As in `split`.
        seed: Likewise.

    Raises:
        ValueError: Likewise.
    """
    check_splits(examples, **{name: fraction})
    length = _length(examples, name)
    is_share = isinstance(fraction, numbers.Real) and 0.0 < fraction < 1.0
    # Rounded up, but for what floating-point numbers add.
    number = math.ceil(length * fraction - 1e-9) if is_share else 0
    if not 0 < number < length:
        raise ValueError(
            f"`{name}` must leave examples on both sides. "
            f"Received: {name}={fraction} of {length} examples."
        )
    # Not the numbers that shuffle the passes over the examples.
    draws = np.random.default_rng((check_seed("seed", seed), 0, 1))
    classes = _classes(examples[1], stratify, number)
    is_outer = np.zeros(length, bool)
    for members, size in _shares(classes, length, number, draws):
        is_outer[draws.permutation(members)[:size]] = True
    return _rows(examples, ~is_outer), _rows(examples, is_outer)


def fold_numbers(
    examples: tuple, number: int, name: str, seed: int = 0
) -> np.ndarray:
    """Divides examples into folds at random, of each class alike.

    Folds differ in length by one at most, and so do the examples of a class in
    them. Targets are classes where `split` takes them for such by `"auto"`.

    Args:
        examples: Tuple that begins with inputs and targets.
        number: Integer, the folds.
        name: What the user calls that number.
        seed: Integer `>= 0`.

    Returns:
        Integer array: the fold of each example.

    Raises:
        ValueError: If there are no arrays of one length, or fewer examples
            than folds.
    """
    length = _length(examples, name)
    if number > length:
        raise ValueError(
            f"`{name}` must be at most the number of examples. "
            f"Received: {name}={number} and {length} examples. Lower it."
        )
    # Not the numbers that draw an outer set or shuffle the passes.
    draws = np.random.default_rng((check_seed("seed", seed), 0, 2))
    classes = _classes(examples[1], "auto", math.ceil(length / number))
    order = draws.permutation(length)
    if classes is not None:
        order = order[np.argsort(classes[order], kind="stable")]
    # Dealt out in turn, class after class.
    fold_of = np.empty(length, int)
    fold_of[order] = np.arange(length) % number
    return draws.permutation(number)[fold_of]


def _length(examples, name):
    """The number of examples."""
    leaves = [leaf for leaf in keras.tree.flatten(examples) if leaf is not None]
    shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
    if not shapes or () in shapes:
        kinds = sorted({type(leaf).__name__ for leaf in leaves})
        raise ValueError(
            f"`{name}` needs arrays of examples. Received: {kinds or None}. "
            "Make arrays of lists: `numpy.asarray(x)`."
        )
    lengths = sorted({shape[0] for shape in shapes})
    if len(lengths) > 1:
        raise ValueError(
            f"`{name}` needs arrays of one length. Received: arrays of "
            f"{lengths} examples."
        )
    return lengths[0]


def _classes(y, stratify, number):
    """The class of each example as an integer, or `None` for no classes.

    Args:
        y: Targets.
        stratify: As in `split`.
        number: How many examples are drawn.
    """
    if stratify is False:
        return None
    if y is None or keras.tree.is_nested(y):
        if stratify is True:
            raise ValueError(
                "`stratify=True` needs one array of targets. Received: targets "
                f"of type {type(y).__name__}. Pass `stratify=False`."
            )
        return None
    y = np.asarray(y)
    is_column = y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1)
    if _is_one_hot(y):
        classes = y.argmax(1)
    elif is_column and (stratify is True or y.dtype.kind in "biuOSU"):
        column = y.reshape(-1).astype(str if y.dtype.kind == "O" else y.dtype)
        classes = np.unique(column, return_inverse=True)[1]
    elif stratify is True:
        raise ValueError(
            "`stratify=True` needs classes: one column of targets, or one-hot "
            f"rows. Received: targets of shape {y.shape}. Pass "
            "`stratify=False`."
        )
    else:
        return None
    room = len(classes) - len(np.unique(classes))
    if number <= room:
        return classes
    if stratify is True:
        raise ValueError(
            "`stratify=True` must leave an example of each class in the "
            f"training data. Received: {len(classes)} examples of "
            f"{len(classes) - room} classes, of which {number} are to be "
            "drawn. Lower `fraction`, or pass `stratify=False`."
        )
    return None


def _is_one_hot(y):
    return bool(
        y.ndim == 2
        and y.shape[1] > 1
        and y.dtype.kind in "biuf"
        and np.isin(y, (0, 1)).all()
        and (y.sum(1) == 1).all()
    )


def _shares(classes, length, number, draws):
    """Pairs of the examples of a class and how many of them are drawn."""
    if classes is None:
        return [(np.arange(length), number)]
    _, classes, counts = np.unique(
        classes, return_inverse=True, return_counts=True
    )
    exact = counts * (number / length)
    sizes = np.floor(exact).astype(int)
    # The largest remainders are rounded up; of equal ones, any.
    turns = draws.permutation(len(counts))
    turns = turns[np.argsort((sizes - exact)[turns], kind="stable")]
    while (missing := number - sizes.sum()) > 0:
        open_classes = turns[sizes[turns] < counts[turns] - 1]
        sizes[open_classes[:missing]] += 1
    return [
        (np.flatnonzero(classes == index), size)
        for index, size in enumerate(sizes)
    ]


def _rows(examples, chosen):
    """The chosen examples."""
    indices = np.flatnonzero(chosen)

    def part(leaf):
        if leaf is None:
            return None
        if hasattr(leaf, "iloc"):  # what pandas holds
            return leaf.iloc[indices]
        if tf.is_tensor(leaf):
            return tf.gather(leaf, indices)
        return leaf[indices]

    return keras.tree.map_structure(part, examples)
