"""Pictures of what was learned, drawn by matplotlib (the extra `plots`).

A figure made here is unknown to pyplot, so nothing global changes: a notebook
shows it, `figure.savefig(path)` writes it. For a window, draw into pyplot's own
(`ax=plt.gca()`, `figure=plt.figure()`) and call `plt.show()`.
"""

import functools
import io
import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_hposgld.hyperparameters.hyperparameter import find_hyperparameters
from keras_hposgld.hyperparameters.hyperparameter import values_by_path

NUM_BINS = 51
NOT_DRAWN = ("learning_rate", "skipped_updates")


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
    edges = np.geomspace(*_limits(np.array(ends)), NUM_BINS + 1)
    ax = ax or _new_figure(7, 1.2 + 0.5 * len(rows)).subplots()
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


def plot_history(
    history: Any, *, validation_freq: int = 1, figure: Any = None
) -> Any:
    """Draws the course of losses, hypergradient norm and metrics.

    Each of the three has a panel if it was logged; validation is dashed.

    Args:
        history: The `keras.callbacks.History` that `fit` returns, or its
            dictionary.
        validation_freq: Integer, as in `fit`. Defaults to `1`.
        figure: Empty matplotlib figure to draw into. Defaults to a new one.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If `history` is none of the above.
        ValueError: If it is empty, or if an entry lacks epochs.

    Example:

    ```python
    import keras_hposgld as hs

    losses = {"loss": [2.0, 1.5, 1.2], "val_outer_loss": [1.9, 1.5, 1.3]}
    history = losses | {"hypergradient_norm": [1.0, 0.1, 0.01]}
    hs.plotting.plot_history(history).savefig("history.png")
    ```
    """
    logs = getattr(history, "history", history)
    if not isinstance(logs, Mapping):
        raise TypeError(
            "`history` must be a `keras.callbacks.History` or its dictionary. "
            f"Received: history={history!r}. Pass what `fit` returns."
        )
    panels = _panels(logs)
    if not panels:
        raise ValueError(
            "`history` must hold losses or metrics of at least one epoch. "
            f"Received: history={dict(logs)}. Pass what `fit` returns."
        )
    num_epochs = max(map(len, logs.values()))
    # Keras counts epochs from 0 here, and from 1 wherever it prints them.
    epochs = 1 + np.asarray(getattr(history, "epoch", range(num_epochs)))
    figure = figure or _new_figure(7, 0.8 + 1.8 * len(panels))
    column = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for ax, (title, keys) in zip(column, panels.items(), strict=True):
        names = list(dict.fromkeys(map(_name, keys)))
        for key in keys:
            color = f"C{names.index(_name(key))}"
            line, at = "-", epochs
            if key.startswith("val_"):
                line, at = "--", epochs[epochs % validation_freq == 0]
            if len(logs[key]) != len(at):
                raise ValueError(
                    f"`history` must have {len(at)} values of {key!r}, for "
                    f"{num_epochs} epochs and the given `validation_freq`. "
                    f"Received: {len(logs[key])} values, validation_freq="
                    f"{validation_freq}. Pass the `validation_freq` of `fit`."
                )
            marker = "." if len(at) <= 30 else ""
            ax.plot(at, logs[key], line, c=color, marker=marker, label=key)
        ax.set_ylabel(title)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
        if title == "hypergradient norm":  # one curve, which is named by now
            ax.set_yscale("log")
        else:
            ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    ax.set_xlabel("epoch")
    ax.locator_params(axis="x", integer=True)
    return figure


def plot_regularization_map(
    values: Any,
    shape: tuple[int, int] | None = None,
    *,
    limits: tuple[float, float] | None = None,
    label: str = "learned strength",
    ax: Any = None,
) -> Any:
    """Draws the strengths of one weight as an image, colors on a log scale.

    Inputs run downwards, outputs to the right; `shape` arranges the inputs as
    the picture that they are instead. A pixel is the geometric mean (the mean
    of the colors) over what has no place: the window of a convolution kernel,
    and with `shape` the outputs.

    Args:
        values: Array of positive numbers: `(inputs,)`, `(inputs, outputs)` or
            a convolution kernel, `(..., inputs, outputs)`.
        shape: `(rows, columns)` of the inputs; a vector needs it.
        limits: `(low, high)`, the ends of the color scale, to make maps
            comparable. Defaults to the range of what is drawn.
        label: String, for the color bar.
        ax: Matplotlib axes to draw into. Defaults to those of a new figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `values` are not all above 0 or do not fit `shape`, or
            if `limits` are out of order.

    Example:

    ```python
    import keras_hposgld as hs
    import numpy as np

    strengths = np.geomspace(1e-4, 1, 64)  # one an input: 8 x 8 pixels
    figure = hs.plotting.plot_regularization_map(strengths, (8, 8))
    figure.savefig("map.png")
    ```
    """
    values = np.asarray(values, "float64")
    is_fine = np.isfinite(values) & (values > 0)
    if not values.size or not is_fine.all():
        raise ValueError(
            "`values` must be finite and above 0, for a logarithmic scale. "
            f"Received: {np.sum(~is_fine)} of {values.size} values that are "
            "not. `np.maximum(values, 1e-8)` takes care of zeros."
        )
    picture = _picture(values, shape)
    low, high = limits or _limits(picture)
    if not 0 < low < high < math.inf:
        raise ValueError(
            "`limits` must be `(low, high)` with `0 < low < high`. "
            f"Received: limits={limits}. `None` finds them."
        )
    colors = _matplotlib().colors
    ax = ax or _new_figure(5, 4).subplots()
    image = ax.imshow(picture, norm=colors.LogNorm(low, high))
    if shape is None:
        ax.set(xlabel="output", ylabel="input", aspect="auto")
    ax.locator_params(integer=True)
    beyond = (picture.min() < low) + 2 * (picture.max() > high)
    extend = ("neither", "min", "max", "both")[beyond]
    ax.figure.colorbar(image, ax=ax, label=label, extend=extend)
    return ax.figure


def _picture(values, shape):
    """The matrix to draw: the mean logarithm where an axis has no place."""
    axes = set(range(values.ndim - 2))  # the window of a kernel
    if shape is not None and values.ndim > 1:
        axes.add(values.ndim - 1)  # the outputs
    if axes:
        values = np.exp(np.log(values).mean(tuple(axes)))
    if shape is None and values.ndim < 2:
        raise ValueError(
            "`shape` must be given unless `values` are a matrix or a kernel. "
            f"Received: values of shape {values.shape}. Pass "
            "`shape=(rows, columns)`; a single number is for "
            "`plot_hyperparameters`."
        )
    if shape is None:
        return values
    if np.size(shape) != 2 or np.prod(shape) != values.size:
        raise ValueError(
            "`shape` must be `(rows, columns)` with as many pixels as there "
            f"are inputs, {values.size}. Received: shape={shape}. Give "
            f"`shape=(1, {values.size})` to see a strip."
        )
    return values.reshape(shape)


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


def _panels(logs):
    """The keys in each panel: by name, training before validation."""
    panels = {"loss": [], "hypergradient norm": [], "metrics": []}
    for key in sorted(logs, key=lambda key: (_name(key), len(key))):
        title = "loss" if f"_{_name(key)}".endswith("_loss") else "metrics"
        if _name(key) == "hypergradient_norm":
            title = "hypergradient norm"
        if _name(key) not in NOT_DRAWN and len(logs[key]):
            panels[title].append(key)
    return {title: keys for title, keys in panels.items() if keys}


def _name(key):
    return key.removeprefix("val_")


def _limits(values):
    """The range of the values, at least a factor of 2 wide."""
    low, high = values.min(), values.max()
    widening = max(1.0, math.sqrt(2 * low / high))
    return low / widening, high * widening


def _matplotlib():
    try:
        import matplotlib.colors
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "`keras_hposgld.plotting` needs matplotlib. "
            f"Received: {error}. Run `pip install keras-hposgld[plots]`."
        ) from error
    return matplotlib


def _new_figure(width, height):
    figure = _matplotlib().figure.Figure((width, height), layout="constrained")
    # Without pyplot, a notebook would print a figure as text.
    figure._repr_png_ = functools.partial(_png, figure)
    return figure


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
