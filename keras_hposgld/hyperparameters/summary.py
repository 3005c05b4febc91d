"""A table of hyperparameters, as text."""

import numpy as np

from keras_hposgld.hyperparameters.discovery import values_by_path
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter

COLUMNS = ("path", "granularity", "number", "minimum", "median", "maximum")


def summarize(owners: list[Hyperparameter]) -> list[str]:
    """The lines of a table with one row for each learned tensor.

    Args:
        owners: The objects that own the hyperparameters.

    Returns:
        List of strings: a head, a row for each path with the number of its
        constrained values, their minimum, median and maximum, and the total.
    """
    rows, total = [], 0
    for owner in owners:
        for path, value in values_by_path([owner]).items():
            total += value.size
            spread = (value.min(), np.median(value), value.max())
            rows.append(
                (path, owner.granularity, f"{value.size:,}")
                + tuple(f"{number:.3g}" for number in spread)
            )
    widths = [
        max(len(row[column]) for row in [COLUMNS, *rows])
        for column in range(len(COLUMNS))
    ]

    def line(row):
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(
                zip(row, widths, strict=True)
            )
        ]
        return "  ".join(cells)

    head = line(COLUMNS)
    return [
        head,
        "-" * len(head),
        *(line(row) for row in rows),
        "-" * len(head),
        f"{total:,} hyperparameters",
    ]
