"""The distribution of the learned values, a row for each weight."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.hyperparameters.discovery import values_by_path
from keras_hposgld.plotting.figure import limits_of
from keras_hposgld.plotting.figure import new_figure

NUM_BINS = 51


def plot_hyperparameters(learner: Any, ax: Any = None) -> Any:
    """Draws how the learned values of each weight are distributed.

    A weight is a row: a histogram over bins that all rows share, as high as
    its fullest bin, or a point for a single value. Its label counts the values
    `n`, and where some are not above 0, which have no place on a logarithmic
    scale, those that are.

    Args:
        learner: `BilevelModel`, a built `keras.Model`, or a mapping from path
            to values, as `hyperparameter_values()` returns it.
        ax: Matplotlib axes to draw into. Defaults to those of a new figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `learner` is none of the above.
        ValueError: If there is no value above 0.

    Example:

    ```python
    import keras_hposgld as hs
    import numpy as np

    strengths = np.random.default_rng(0).lognormal(-5, 2, 320)
    values = {"dense/kernel/l2": strengths, "logits/kernel/l2": 1e-3}
    hs.plotting.plot_hyperparameters(values).savefig("hyperparameters.png")
    ```
    """
    rows = _values_by_path(learner)
    shown = [row[np.isfinite(row) & (row > 0)] for row in rows.values()]
    if not any(row.size for row in shown):
        raise ValueError(
            "`learner` must have hyperparameters with values above 0, for a "
            f"logarithmic scale. Received: hyperparameters {list(rows)}. A "
            "model has none before it is built, or without learnable ones."
        )
    ends = [(row.min(), row.max()) for row in shown if row.size]
    low, high = limits_of(np.array(ends))
    edges = np.geomspace(low, high, NUM_BINS + 1)
    ax = ax or new_figure(7, 1.2 + 0.5 * len(rows)).subplots()
    marks = {}
    for center, row in enumerate(shown):
        top, foot = center - 0.4, center + 0.4  # the axis points downwards
        if row.size == 1:
            (marks["single value"],) = ax.plot(row, center, "o", color="C0")
        elif row.size:
            counts, _ = np.histogram(row, edges)
            bars = foot + (top - foot) * counts / counts.max()
            fill = {"fill": True, "color": "C0", "alpha": 0.6}
            marks["histogram"] = ax.stairs(bars, edges, baseline=foot, **fill)
            marks["median"] = ax.vlines(np.median(row), top, foot, colors="C1")
    labels = [
        f"{path}\nn = {values.size:,}"
        + f", {row.size:,} above 0" * (row.size < values.size)
        for (path, values), row in zip(rows.items(), shown, strict=True)
    ]
    ax.set_yticks(range(len(rows)), labels=labels)
    ax.tick_params(axis="y", length=0)
    ax.set(xscale="log", xlabel="learned value", ylim=(len(rows) - 0.5, -0.5))
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["left", "top", "right"]].set_visible(False)
    above = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 3}
    ax.legend(marks.values(), marks.keys(), frameon=False, **above)
    return ax.figure


def _values_by_path(learner):
    values = learner
    if hasattr(learner, "hyperparameter_values"):
        values = learner.hyperparameter_values()
    elif isinstance(learner, keras.Model):
        values = values_by_path(find_hyperparameters(learner))
    if not isinstance(values, Mapping):
        raise TypeError(
            "`learner` must be a `BilevelModel`, a `keras.Model` or a mapping "
            "from path to values. "
            f"Received: learner={learner!r} of type {type(learner).__name__}."
        )
    return {path: np.ravel(value) for path, value in values.items()}
