"""Draws the rooms of the package and who imports whom, into `docs/images`.

python experiments/house/draw.py [--output FILE]
"""

import argparse
import pathlib

from matplotlib.figure import Figure
from rooms import arrows
from rooms import FLOORS
from rooms import HEIGHTS

PICTURE = pathlib.Path(__file__).parents[2] / "docs" / "images" / "house.png"
NAMES = {"__init__": "keras_hposgld"}


def places() -> dict[str, tuple[float, float]]:
    """Where each room stands: a floor is a row, shifted to show arrows."""
    found = {}
    for height, floor in enumerate(FLOORS):
        shift = 0.35 * (-1) ** height if len(floor) == 1 else 0.0
        for number, room in enumerate(floor):
            found[room] = (
                2.2 * (number - (len(floor) - 1) / 2) + shift,
                height,
            )
    return found


def draw(path: pathlib.Path) -> None:
    """Saves the picture."""
    figure = Figure((9, 9), layout="constrained")
    axes = figure.subplots()
    at = places()
    for room, other in sorted(arrows()):
        near = HEIGHTS[room] - HEIGHTS[other] == 1
        axes.annotate(
            "",
            xy=at[other],
            xytext=at[room],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "tab:blue" if near else "lightgray",
                "shrinkA": 12,
                "shrinkB": 12,
                "connectionstyle": f"arc3,rad={0.0 if near else 0.18}",
            },
        )
    for room, (x, y) in at.items():
        box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": "black"}
        name = NAMES.get(room, room)
        axes.text(x, y, name, ha="center", va="center", bbox=box)
    axes.set(xlim=(-4, 4), ylim=(-0.6, len(FLOORS) - 0.4))
    axes.axis("off")
    figure.savefig(path, dpi=110)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, default=PICTURE)
    draw(parser.parse_args(arguments).output)


if __name__ == "__main__":
    main()
