"""Strengths learned from the training data alone, against what people do.

    python experiments/evidence.py --data FOLDER --out results.csv
        [--sets madelon,concrete] [--methods ard,forest] [--splits 5]

Each method has one setting, which serves all sets. A row for each set, split
and method is appended to `--out` as soon as it is there, with the error (the
share of wrong classes, or the root of the mean squared error in the targets'
units), the mean negative log-likelihood of the test targets, and the seconds of
processor time. `--limit` is on them too: a method that needs longer on a split
is left out on the others of its set.
Rows that are there are not computed again: the same command resumes. At the end
all rows of the file are made into tables.

Probabilities below 1e-12 count as 1e-12. `--data` is a folder with `tabular/`,
`nir/`, `microarrays/`, `madelon.npz` and the like; without it, the sets of
scikit-learn are left. Some rivals need packages, which
`posterior/torch_rivals.py` names; without them they are left out.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from posterior import rows as table  # noqa: E402
from posterior import sets  # noqa: E402
from posterior import tables  # noqa: E402
from posterior.left_out import LeftOut  # noqa: E402
from posterior.methods import METHODS  # noqa: E402


def names(known):
    """Reads names with commas between them."""

    def read(text):
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"{name} is not known. Known: {', '.join(known)}"
                )
        return found

    return read


def compute(name, number, method, out, data, limit):
    """Adds a row. Returns why this set has to do without the method."""
    split = sets.load(name, number, data)
    try:
        row = table.run(METHODS[method], split, number, limit)
    except LeftOut as reason:
        return str(reason)
    row = {"set": name, "split": number, "method": method, **row}
    table.append(out, row)
    print(
        f"{name} {number} {method}: {row['error']:.4f} {row['nll']:.4f}"
        f" {row['seconds']:.1f} s {row['note']}",
        flush=True,
    )
    return f"over {limit} s" if row["note"] == table.TOO_LONG else None


def compute_all(arguments):
    """Adds all rows that are not there."""
    there = table.read(arguments.out)
    done = {(r["set"], r["split"], r["method"]) for r in there}
    slow = {
        (r["set"], r["method"]) for r in there if r["note"] == table.TOO_LONG
    }
    for name in arguments.sets:
        if not arguments.data and name not in sets.WITHOUT_FOLDER:
            print(f"{name}: left out, it needs --data", flush=True)
            continue
        methods = [m for m in arguments.methods if (name, m) not in slow]
        number = sets.number_of_splits(name)
        for split in range(min(number, arguments.splits or number)):
            for method in tuple(methods):
                if (name, split, method) in done:
                    continue
                reason = compute(
                    *(name, split, method),
                    *(arguments.out, arguments.data, arguments.limit),
                )
                if reason:
                    print(f"{name} {method}: left out, {reason}", flush=True)
                    methods.remove(method)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--sets", type=names(sets.ALL), default=sets.ALL)
    parser.add_argument("--methods", type=names(METHODS), default=[*METHODS])
    parser.add_argument("--splits", type=int, help="at most, of each set")
    parser.add_argument("--limit", type=float, default=300.0, help="a fit")
    parser.add_argument("--tables", action="store_true", help="compute nothing")
    parser.add_argument("--markdown", action="store_true", help="more tables")
    arguments = parser.parse_args(arguments)
    if not arguments.tables:
        compute_all(arguments)
    rows = table.read(arguments.out)
    for name in tables.names_of(rows, "set"):
        tables.show_set([r for r in rows if r["set"] == name])
    if rows:
        tables.show_summary(rows)
    if arguments.markdown:
        for measure in tables.MEASURES:
            tables.show_markdown(rows, measure)


if __name__ == "__main__":
    main()
