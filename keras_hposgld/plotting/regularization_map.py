"""The strengths of one weight as an image."""

import math
from typing import Any

import numpy as np

from keras_hposgld.plotting.figure import limits_of
from keras_hposgld.plotting.figure import matplotlib_modules
from keras_hposgld.plotting.figure import new_figure


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
    low, high = limits or limits_of(picture)
    if not 0 < low < high < math.inf:
        raise ValueError(
            "`limits` must be `(low, high)` with `0 < low < high`. "
            f"Received: limits={limits}. `None` finds them."
        )
    colors = matplotlib_modules().colors
    ax = ax or new_figure(5, 4).subplots()
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
