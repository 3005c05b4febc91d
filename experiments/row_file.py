"""Rows of a measurement in a file, one after the other as they are there."""

import csv


def read(path):
    """All rows of a file as dictionaries of strings; none without a file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path, row):
    """Adds a row to a file. The first brings the names of the columns."""
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if is_new:
            writer.writeheader()
        writer.writerow(row)
