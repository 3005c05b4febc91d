"""Features with wrong labels, of which the true ones are known.

A part has the training inputs with given and true labels, trusted outer
examples, and a test part. Inputs are standardized by the training part.
"""

from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
    """Features are float32, labels integers; `true` is for scoring alone."""

    x: np.ndarray
    given: np.ndarray
    true: np.ndarray
    outer_x: np.ndarray
    outer_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    num_classes: int


def trec(features, data):
    """Questions with the majority label of 68 labelling functions."""
    x = np.load(features / "trec_minilm.npz")
    y = np.load(data / "trec_weak.npz")
    return part_of(
        (x["train"], y["hard_labels"], y["train_label"]),
        (x["valid"], y["valid_label"]),
        (x["test"], y["test_label"]),
    )


def cifar10n(features, data):
    """Images with the human labels `worse`."""
    x = np.load(features / "cifar10n_effnet.npz")
    y = np.load(data / "cifar10n.npz")
    inner, outer = slice(0, 8000), slice(8000, 9000)
    return part_of(
        (x["train"][inner], y["worse"][inner], y["clean"][inner]),
        (x["train"][outer], y["clean"][outer]),
        (x["test"], y["test_y"]),
    )


def drawn(n=300):
    """A small set of the same form, for a look at whether all of it runs."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 5)) + 2.0 * np.eye(5)[y]
    given = np.where(rng.random(n) < 0.3, (y + 1) % 3, y)
    return part_of(
        (x[:200], given[:200], y[:200]),
        (x[200:240], y[200:240]),
        (x[240:], y[240:]),
    )


def part_of(inner, outer, test):
    center, scale = inner[0].mean(0), inner[0].std(0) + 1e-6
    arrays = [
        ((part[0] - center) / scale).astype("float32") if number == 0 else label
        for part in (inner, outer, test)
        for number, label in enumerate(part)
    ]
    labels = [
        array if array.ndim == 2 else array.astype("int32") for array in arrays
    ]
    return Part(*labels, num_classes=int(inner[2].max()) + 1)


SETS = {"trec": trec, "cifar10n": cifar10n}
