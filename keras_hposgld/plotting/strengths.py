"""The strengths of one weight as bars, a bar for each input by its name."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_hposgld.plotting.figure import new_figure


def plot_strengths(
    values: Any,
    names: Sequence[str] | None = None,
    *,
    most: int = 40,
    label: str = "learned strength",
    ax: Any = None,
) -> Any:
    """Draws strengths as bars, the weakest first: the inputs that count most.

    Args:
        values: Array `(n,)` of numbers above 0: the strengths of one weight,
            one for each input. An array `(n, ...)` counts by the geometric
            means over all but its first axis.
        names: Sequence of `n` strings, what the inputs are called, such as the
            columns of a data frame. `None` (default): their numbers.
        most: Integer: of more bars than this, the weakest and the strongest
            halves of so many are drawn. Defaults to `40`.
        label: String, for the axis.
        ax: Matplotlib axes to draw into. Defaults to those of a new figure.

    Returns:
        `matplotlib.figure.Figure`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `values` are not all above 0, or if there is not one
            name for each of them.

    Example:

    ```python
    import keras_hposgld as hs

    strengths = {"age": 0.02, "weight": 0.4, "shoe size": 3.1}
    figure = hs.plotting.plot_strengths(
        list(strengths.values()), names=list(strengths)
    )
    figure.savefig("strengths.png")
    ```
    """
    values = np.asarray(values, "float64")
    if values.ndim == 0 or not np.all(np.isfinite(values) & (values > 0)):
        raise ValueError(
            "`values` must be an array of finite numbers above 0, one for each "
            f"input. Received: values={values!r}."
        )
    logs = np.log(values).reshape(len(values), -1)
    heights = np.exp(logs.mean(axis=1))
    if names is None:
        names = [str(number) for number in range(len(heights))]
    if len(names) != len(heights):
        raise ValueError(
            "`names` must have one name for each value. Received: "
            f"{len(names)} names and {len(heights)} values."
        )
    order = np.argsort(heights, kind="stable")
    left_out = len(order) - most
    if left_out > 0:
        order = np.concatenate([order[: most // 2], order[-(most // 2) :]])
    ax = ax or new_figure(6, 1.0 + 0.22 * len(order)).subplots()
    places = np.arange(len(order), dtype=float)
    if left_out > 0:
        places[most // 2 :] += 1  # a gap for those between
        between = f"... {len(heights) - len(order)} more ..."
        ax.text(
            0.5,
            most // 2,
            between,
            va="center",
            ha="center",
            transform=ax.get_yaxis_transform(),
        )
    ax.barh(places, heights[order])
    ax.set_yticks(places, labels=[str(names[place]) for place in order])
    ax.set(xscale="log", xlabel=label, ylim=(places[-1] + 0.6, -0.6))
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)
    return ax.figure
