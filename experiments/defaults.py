"""The defaults of `LearnHyperparameters`, chosen on data and confirmed.

    python experiments/defaults.py choose [--data FOLDER] [--seeds 3]
    python experiments/defaults.py confirm [--data FOLDER] [--seeds 3]

`choose` tries one change of the defaults after the other, on one half of the
data sets. `confirm` compares the defaults with what people do today, on all of
them: those on which nothing was chosen are marked with a star. `--data` is a
folder with `tabular/communities.npz`, `tabular/uci/concrete.npz` and
`trec_weak.npz`; without it those sets are left out. Every row can be written to
a file by `--output`.
"""

import argparse
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from learning import methods  # noqa: E402
from learning import sets  # noqa: E402

import keras_hposgld as hs  # noqa: E402


def every(steps):
    """A chain of so many steps, with one outer gradient."""
    return {"estimator": hs.estimators.HPOSGLD(0, steps, outer_every=steps)}


CANDIDATES = {
    "defaults": {},
    "start / 10": {"initial_value": 0.01},
    "start * 10": {"initial_value": 1.0},
    "shrinkage 1": {"shrinkage": 1.0},
    "shrinkage 0.3": {"shrinkage": 0.3},
    "shrinkage 0": {"shrinkage": 0.0},
    "per tensor": {"granularity": "tensor"},
    "per output, prior": {"granularity": "output", "shrinkage": 0.5},
    "per parameter, prior": {"granularity": "parameter", "shrinkage": 0.5},
    "bound 10": {"max_value": 10.0},
    "chain of 2": {"callback": lambda: every(2)},
    "chain of 10": {"callback": lambda: every(10)},
    "constant rate 0.1": {
        "callback": lambda: {"hyper_optimizer": keras.optimizers.Adam(0.1)}
    },
    "constant rate 0.05": {
        "callback": lambda: {"hyper_optimizer": keras.optimizers.Adam(0.05)}
    },
}
STARTS = ("defaults", "start / 10", "start * 10", "per tensor")


def learned(name, split, seed, refits):
    """The rows of a candidate."""
    kind = dict(CANDIDATES[name])
    callback = kind.pop("callback", dict)()
    name = name.replace("defaults", "callback")
    return methods.learned(split, seed, name, refits, callback, **kind)


def choose(split, seed, names=CANDIDATES):
    """One row for each candidate."""
    return [r for name in names for r in learned(name, split, seed, False)]


def confirm(split, seed):
    """The rows of all methods."""
    rows = methods.early_stopping(split, seed) + methods.constants(split, seed)
    for name in STARTS:
        rows += learned(name, split, seed, refits=name == "defaults")
    return rows


def means(rows, method):
    """Mean loss, its standard error over the seeds, accuracy, seconds."""
    own = [r for r in rows if r["method"] == method]
    losses = [r["loss"] for r in own]
    error = np.std(losses, ddof=1) / len(own) ** 0.5 if len(own) > 1 else 0.0
    accuracy, seconds = (
        np.mean([r[key] for r in own]) for key in ("accuracy", "seconds")
    )
    return np.mean(losses), error, accuracy, seconds


def show(title, rows):
    """Prints the table of a data set."""
    print(f"\n{title}\n{'':32s}  test loss   (error)  accuracy  seconds")
    for method in dict.fromkeys(r["method"] for r in rows):
        loss, error, accuracy, seconds = means(rows, method)
        print(
            f"{method:32s}  {loss:9.4f}  ({error:.4f})  {accuracy:8.3f}"
            f"  {seconds:7.1f}",
            flush=True,
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["choose", "confirm"])
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="*", help="names, of either half")
    parser.add_argument("--candidates", nargs="*", default=CANDIDATES)
    parser.add_argument("--output", help="file for all rows")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args(arguments)
    if arguments.quick:
        methods.NUM_EPOCHS, methods.STEPS = 2, 10
        methods.GRID = methods.GRID[:2]
    chosen = sets.CHOOSING
    if arguments.what == "confirm" or arguments.sets:
        chosen += sets.CONFIRMING
    all_rows = []
    for name in chosen:
        title = name.__name__
        if arguments.sets and title not in arguments.sets:
            continue
        if name in sets.NEED_FOLDER and not arguments.data:
            print(f"\n{title}: left out, it needs --data")
            continue
        rows = []
        for seed in range(arguments.seeds):
            split = sets.load(name, seed, arguments.data)
            if arguments.what == "choose":
                rows += choose(split, seed, arguments.candidates)
            else:
                rows += confirm(split, seed)
        star = " *" if name in sets.CONFIRMING else ""
        show(title + star, rows)
        all_rows += [{"set": title} | r for r in rows]
    if arguments.output:
        with open(arguments.output, "w") as file:
            json.dump(all_rows, file, indent=1)


if __name__ == "__main__":
    main()
