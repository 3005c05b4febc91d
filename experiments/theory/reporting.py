"""What the scripts of this folder share: options, tables, style of figures."""

import argparse
import pathlib
import re

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

BLACK, GRAY = "#222222", "#8a8a8a"
ORANGE, DARK_ORANGE, YELLOW = "#d55e00", "#8c3d00", "#e69f00"
BLUE, LIGHT_BLUE = "#0072b2", "#56b4e9"

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "font.size": 10,
    "grid.color": "#e6e6e6",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.dpi": 150,
}


def parse(description, arguments=None):
    """The options of a script: `quick`, `output` and `page`."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for the tests")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
        help="folder for the figures",
    )
    parser.add_argument(
        "--page",
        type=pathlib.Path,
        help="Markdown file whose marked tables are renewed",
    )
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    return options


def publish(name, header, rows, page=None):
    """Prints a table as Markdown, and renews it in `page`.

    Args:
        name: String. In the page the table stands between the comments
            `<!-- table: NAME -->` and `<!-- end -->`.
        header: List of strings.
        rows: List of lists of strings, as long as `header`.
        page: Path of a Markdown file, or `None`.

    Raises:
        ValueError: If the page has no such marks.
    """
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
    table = "\n".join(lines)
    print(f"\n{table}\n", flush=True)
    if page is None:
        return
    begin, end = f"<!-- table: {name} -->", "<!-- end -->"
    text, count = re.subn(
        f"({re.escape(begin)}\n).*?({re.escape(end)})",
        lambda match: f"{match[1]}\n{table}\n\n{match[2]}",
        page.read_text(),
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(
            f"`page` must hold {begin!r} and {end!r} once. Received: "
            f"page={str(page)!r} with {count} such tables."
        )
    page.write_text(text)


def scientific(value):
    """A number of two digits for a table, or what else it is, in words."""
    if not np.isfinite(value):
        return "diverged"
    return f"{value:.1e}" if value > 1e-20 else "below 1e-20"


def panels(num_rows, num_columns, size, sharey=False):
    """A figure in the style of this folder, and its array of axes."""
    plt.rcParams.update(STYLE)
    return plt.subplots(
        num_rows,
        num_columns,
        figsize=size,
        layout="constrained",
        squeeze=False,
        sharey=sharey,
    )


def label_ends(axis, gap=0.075):
    """Writes the label of each curve beside its right end, without overlap.

    Call it when the limits of the axis are final.
    """
    to_axes = axis.transData + axis.transAxes.inverted()
    ends = []
    for line in axis.get_lines():
        x, y = line.get_data()
        shown = np.flatnonzero(np.isfinite(np.asarray(y, float)))
        if line.get_label().startswith("_") or not len(shown):
            continue
        end = to_axes.transform((x[shown[-1]], y[shown[-1]]))
        ends.append([float(np.clip(end[1], 0.02, 0.98)), line])
    ends.sort(key=lambda end: end[0])
    heights = np.array([height for height, _ in ends])
    for _ in range(100):  # push neighbors apart, keep the middle
        for low in range(len(heights) - 1):
            lack = gap - (heights[low + 1] - heights[low])
            if lack > 0:
                heights[low] -= lack / 2
                heights[low + 1] += lack / 2
    for height, (_, line) in zip(heights, ends, strict=True):
        axis.annotate(
            line.get_label(),
            (1.02, height),
            xycoords="axes fraction",
            color=line.get_color(),
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def save(figure, folder, name):
    """Saves a figure as `NAME.png` and says where."""
    path = folder / f"{name}.png"
    figure.savefig(path)
    plt.close(figure)
    print(f"figure: {path}", flush=True)
