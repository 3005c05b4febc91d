"""A table of hyperparameters, as text."""

from typing import Any

import numpy as np

from keras_hposgld.hyperparameters.discovery import values_by_path
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter

COLUMNS = ("path", "granularity", "number", "minimum", "median", "maximum")


def rows_of(owners: list[Hyperparameter]) -> list[tuple]:
    """A row for each learned tensor, in the order of `COLUMNS`.

    Args:
        owners: The objects that own the hyperparameters.
    """
    return [
        (
            path,
            owner.granularity,
            int(value.size),
            float(value.min()),
            float(np.median(value)),
            float(value.max()),
        )
        for owner in owners
        for path, value in values_by_path([owner]).items()
    ]


def frame_of(owners: list[Hyperparameter]) -> Any:
    """The same as a `pandas.DataFrame`.

    Raises:
        ImportError: If pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "`hyperparameter_frame` needs pandas. "
            f"Received: {error}. Run `pip install pandas`."
        ) from error
    return pandas.DataFrame(rows_of(owners), columns=list(COLUMNS))


def summarize(owners: list[Hyperparameter]) -> list[str]:
    """The lines of a table with one row for each learned tensor.

    Args:
        owners: The objects that own the hyperparameters.

    Returns:
        List of strings: a head, a row for each path with the number of its
        constrained values, their minimum, median and maximum, and the total.
    """
    values = rows_of(owners)
    total = sum(number for _, _, number, *_ in values)
    rows = [
        (path, granularity, f"{number:,}", *(f"{x:.3g}" for x in spread))
        for path, granularity, number, *spread in values
    ]
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
