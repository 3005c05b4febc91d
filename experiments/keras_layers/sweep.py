"""Every public layer of Keras's inside of `BilevelModel`, against plain Keras.

python experiments/keras_layers/sweep.py [LAYER ...] [--processes 2]
    [--results FILE] [--page docs/keras_layers.md]

Prints one row a layer, and writes the table of all rows into the page. With
`--results` the rows are kept in a file, and those in it are not measured
again: the sweep can be run in parts.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import layer_measures  # noqa: E402
import layer_models  # noqa: E402
import layer_rows  # noqa: E402
import tensorflow as tf  # noqa: E402

UNKNOWN = layer_models.UNKNOWN
MARK = "<!-- the table that experiments/keras_layers/sweep.py wrote -->\n"
HEADER = ("layer", "precision", "weights", "1 step", "3 steps") + (
    "resumed",
    "export",
    "remark",
)


def measured(name: str) -> dict:
    """The row of a layer as a dictionary, or the error that came instead."""
    keras.backend.clear_session()
    try:
        row = layer_measures.measure(name)
    except Exception:
        return {"name": name, "faults": [traceback.format_exc()]}
    return kept(row)


def kept(row: layer_rows.Row) -> dict:
    """A row as it is kept in a file."""
    return dataclasses.asdict(row) | {"faults": row.faults()}


def cells(row: dict) -> list[str]:
    """A row of the table, as text."""

    def number(key):
        value = row.get(key)
        if value is None:
            return ""
        return "0" if value == 0.0 else f"{value:.0e}"

    resumed = {True: "equal", False: "no", None: ""}[row.get("resumed")]
    faults = "; ".join(fault.splitlines()[-1] for fault in row["faults"])
    refused = layer_rows.first_sentence(row.get("refused", ""))
    return [
        f"`{row['name']}`",
        row.get("dtype", ""),
        *map(number, ("weights", "one_step", "three_steps")),
        resumed,
        number("export"),
        f"**{faults}**" if faults else refused,
    ]


def table(rows: list[dict]) -> str:
    """The rows in Markdown, in the order of their names."""
    ordered = sorted(rows, key=lambda row: row["name"])
    lines = [HEADER, ["---"] * len(HEADER), *map(cells, ordered)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def read(path: pathlib.Path) -> dict[str, dict]:
    """Rows of earlier runs by their names."""
    if not path.exists():
        return {}
    rows = map(json.loads, path.read_text().splitlines())
    return {row["name"]: row for row in rows}


def start() -> None:
    """Prepares a process: datasets this small need no tuning by threads."""
    options, iterate = tf.data.Options(), tf.data.Dataset.__iter__
    options.autotune.enabled = False
    tf.data.Dataset.__iter__ = lambda dataset: iterate(
        dataset.with_options(options)
    )


def run(names: list[str], processes: int, results: pathlib.Path) -> None:
    """Measures layers, in processes beside each other, into a file."""
    if processes > 1:
        command = [sys.executable, __file__, "--processes", "1"]
        command += ["--results", str(results)]
        shares = [names[number::processes] for number in range(processes)]
        children = [
            subprocess.Popen([*command, *share]) for share in shares if share
        ]
        for child in children:
            child.wait()
        return
    start()
    for name in names:
        row = measured(name)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(*cells(row), f"{row.get('seconds', 0):.0f} s", flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layers", nargs="*", help="default: all")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--page", type=pathlib.Path)
    given = parser.parse_args(arguments)
    found = layer_models.discovered()
    for name, reason in found.items():
        if reason and not given.layers:
            print(f"{name}: no row, {reason}")
    names = given.layers or [name for name in found if not found[name]]
    with tempfile.TemporaryDirectory() as folder:
        results = given.results or pathlib.Path(folder) / "rows"
        missing = [name for name in names if name not in read(results)]
        if missing:
            run(missing, given.processes, results)
        rows = read(results)
    if given.page:
        head = given.page.read_text().split(MARK)[0]
        given.page.write_text(head + MARK + "\n" + table(list(rows.values())))
    off = [name for name in names if name not in rows or rows[name]["faults"]]
    print(f"{len(names)} layers, off: {off or 'none'}")
    return bool(off)


if __name__ == "__main__":
    sys.exit(main())
