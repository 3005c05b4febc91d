"""Figures of matplotlib (the extra `plots`), unknown to pyplot."""

import functools
import io
import math


def limits_of(values):
    """The range of the values, at least a factor of 2 wide."""
    low, high = values.min(), values.max()
    widening = max(1.0, math.sqrt(2 * low / high))
    return low / widening, high * widening


def matplotlib_modules():
    try:
        import matplotlib.colors
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "`keras_hposgld.plotting` needs matplotlib. "
            f"Received: {error}. Run `pip install keras-hposgld[plots]`."
        ) from error
    return matplotlib


def new_figure(width, height):
    figure = matplotlib_modules().figure.Figure(
        (width, height), layout="constrained"
    )
    # Without pyplot, a notebook would print a figure as text.
    figure._repr_png_ = functools.partial(_png, figure)
    return figure


def _png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
