"""Granularity by the data: a strength per input, never worse than one number.

On exact ridge regression, rules that learn a strength for each input are
compared with the best scalar of the same five folds, on many sets and splits:

    one split               no prior, a third of the examples as outer ones
    one split + Laplace 1   a prior of scale 1 on the deviations
    folds                   no prior
    folds + Gauss 1, folds + Laplace 1, folds + Laplace 2
    folds + Laplace + guard, the rule

`docs/granularity.md` has the rule and the tables. The sets are split in halves:
details were chosen on the first, the second confirms them.

    python experiments/auto.py [--quick] [--data FOLDER] [--out FILE]
        [--page docs/granularity.md]

`--data` names a folder with more sets, as `.npz` files of `x` and `y`.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.extend([str(HERE / "theory"), str(HERE / "granularity")])

import comparison  # noqa: E402
import outputs  # noqa: E402
import regression_sets  # noqa: E402
import reporting  # noqa: E402

NUM_SPLITS = 20
QUICK = ["equal relevance, 20 inputs", "make_regression, sparse"]
QUICK_OUTPUTS = ["iris"]


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="for the tests")
    for name, text in (
        ("data", "folder with more sets"),
        ("out", "JSON file for all rows"),
        ("page", "Markdown file whose marked tables are renewed"),
    ):
        parser.add_argument(f"--{name}", type=pathlib.Path, help=text)
    return parser.parse_args(arguments)


def run(compare, sets, num_splits):
    """Rows of all splits, `{set: [row, ...]}`."""
    everything = {}
    for name, draw in sets.items():
        rows = []
        for split in range(num_splits):
            rng = np.random.default_rng([split, *name.encode()])
            parts = regression_sets.standardized(*draw(rng))
            size = {"examples": len(parts[0]), "inputs": parts[0].shape[1]}
            rows.append({**size, **compare(*parts, rng)})
        everything[name] = rows
        ratios = [
            f"{key} {comparison.Verdict.of(rows, key).ratio:.3f}"
            for key in rows[0]
            if key in (comparison.COLUMNS[-1], *outputs.COLUMNS)
        ]
        print(f"{name}: {', '.join(ratios)}", flush=True)
    return everything


def table(everything, columns, last):
    """A row a set: size, ratios, and what `last` says of its rows."""
    cells = []
    for name, rows in everything.items():
        verdicts = [comparison.Verdict.of(rows, key) for key in columns]
        size = f"{rows[0]['examples']} x {rows[0]['inputs']}"
        ratios = [f"{v.ratio:.3f}{v.sign}" for v in verdicts]
        p = f"{verdicts[-1].t:.1f} ({verdicts[-1].p:.2g})"
        cells.append([name, size, *ratios, p, last(rows)])
    return cells


def kept(rows):
    """On how many splits the rule kept the deviations."""
    key = f"{comparison.COLUMNS[-1]}, kept"
    return f"{sum(row[key] for row in rows)}/{len(rows)}"


def choices(rows):
    """How often each granularity was chosen."""
    found = [row["choice"] for row in rows]
    names = (comparison.SCALAR, *outputs.GRANULARITIES)
    return " ".join(str(found.count(name)) for name in names)


def summaries(everything, columns):
    """A row a rule: better, worse, mean and largest ratio, by half."""
    names = list(everything)
    halves = names[::2], names[1::2], names
    cells = []
    for key in columns:
        row = [key]
        for half in halves:
            verdicts = [
                comparison.Verdict.of(everything[name], key) for name in half
            ]
            better, worse, mean, largest = comparison.summary(verdicts)
            row += [f"{better} / {worse}", f"{mean:.3f}", f"{largest:.3f}"]
        cells.append(row)
    return cells


def main(arguments=None):
    options = parse(arguments)
    sets = regression_sets.sets_of(options.data)
    several = outputs.outputs_of(options.data)
    num_splits = NUM_SPLITS
    if options.quick:
        sets = {name: sets[name] for name in QUICK}
        several = {name: several[name] for name in QUICK_OUTPUTS}
        num_splits = 2
    inputs = run(comparison.compare, sets, num_splits)
    reporting.publish(
        "granularity_sets",
        ["", "size", *comparison.COLUMNS, "t (p)", "kept"],
        table(inputs, comparison.COLUMNS, kept),
        options.page,
    )
    header = [
        f"{half}: {what}"
        for half in ("first half", "second half", "all")
        for what in ("better / worse", "mean", "largest")
    ]
    reporting.publish(
        "granularity_summary",
        ["", *header],
        summaries(inputs, comparison.RULES),
        options.page,
    )
    shared = run(outputs.compare, several, num_splits)
    reporting.publish(
        "granularity_outputs",
        ["", "size", *outputs.COLUMNS, "t (p)", "choices"],
        table(shared, outputs.COLUMNS, choices),
        options.page,
    )
    if options.out:
        options.out.write_text(
            json.dumps({"inputs": inputs, "outputs": shared}, indent=1)
        )
    return inputs, shared


if __name__ == "__main__":
    main()
