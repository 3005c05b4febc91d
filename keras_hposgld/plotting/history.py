"""Losses, hypergradient norm and metrics over the epochs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_hposgld.plotting.figure import new_figure

NOT_DRAWN = ("learning_rate", "skipped_updates", "median_strength")


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
    figure = figure or new_figure(7, 0.8 + 1.8 * len(panels))
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
