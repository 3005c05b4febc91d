"""What learning in the training costs, in plain Adam fits of the same model.

A `fit` with `callbacks.LearnHyperparameters`, its chains in the training,
against the same `fit` without: one L2 strength, or one weight decay, for each
weight of each kernel. The plain model has a constant there. Both run in one
process, in turn; the figures are ratios of the medians of whole epochs.

    python examples/benchmarks/callback_cost.py [--quick] [--models mlp cnn ...]
        [--repeats 9] [--output FOLDER]
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from models import data_for  # noqa: E402
from models import make_model  # noqa: E402
from models import SIZES  # noqa: E402

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def estimators(quick):
    """The rows: what learns."""
    lengths = (2,) if quick else (2, 5, 10)
    hpo = hs.estimators.HPOSGLD
    rows = {"at the defaults": None}
    for n in lengths:
        rows[f"{n} steps, 1 outer gradient"] = hpo(0, n, outer_every=n)
    rows["5 steps, 5 outer gradients"] = hpo(0, 5)
    return rows


def regularizers():
    """The columns: what is learned."""
    kinds = hs.regularizers
    return {
        "L2": lambda: kinds.LearnableL2(1e-4),
        "weight decay": lambda: kinds.LearnableWeightDecay(1e-2),
    }


class Timed:
    """A model with its fits.

    Args:
        name: A key of `SIZES`.
        data: Images and labels.
        batch_size: Integer.
        optimizer: Keras optimizer.
        regularizer: Function without arguments.
        make_callback: Function without arguments, to a list of callbacks.
    """

    def __init__(
        self, name, data, batch_size, optimizer, regularizer, callbacks, quick
    ):
        self.model = make_model(name, data[0].shape[1:], regularizer, quick)
        self.model.compile(optimizer, loss=LOSS)
        self.data, self.batch_size = data, batch_size
        self.epochs = Epochs()
        self.callbacks = [*callbacks, self.epochs]

    def fit(self, epochs):
        """Seconds of each epoch."""
        self.epochs.seconds = []
        self.model.fit(
            *self.data,
            batch_size=self.batch_size,
            epochs=epochs,
            verbose=0,
            shuffle=False,
            callbacks=self.callbacks,
        )
        return self.epochs.seconds


class Epochs(keras.callbacks.Callback):
    """Takes the time of each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def measure(name, batch_size, num_batches, repeats, quick):
    """Ratios of an epoch with the callback to one without.

    Returns:
        Milliseconds of a plain step; dictionary from a row and a column to the
        ratio.
    """
    x, y = data_for(name, batch_size * num_batches, quick)
    outer = data_for(name, 4 * batch_size, quick)
    adam = keras.optimizers.Adam
    adamw = keras.optimizers.AdamW
    plain = {
        "L2": (adam(1e-3), lambda: keras.regularizers.L2(1e-4)),
        "weight decay": (adamw(1e-3, weight_decay=1e-2), lambda: None),
    }
    ratios, milliseconds = {}, None
    for column, regularizer in regularizers().items():
        optimizer, constant = plain[column]
        timed = {
            "plain": Timed(
                name, (x, y), batch_size, optimizer, constant, [], quick
            )
        }
        for row, estimator in estimators(quick).items():
            callback = hs.callbacks.LearnHyperparameters(
                outer, estimator, batch_size=batch_size
            )
            timed[row] = Timed(
                name,
                (x, y),
                batch_size,
                adam(1e-3),
                regularizer,
                [callback],
                quick,
            )
        for one in timed.values():
            one.fit(2)  # traces
        # In turn, so that what slows the machine slows all of them.
        seconds = {row: [] for row in timed}
        for _ in range(repeats):
            for row, one in timed.items():
                seconds[row].append(one.fit(2)[-1])
        base = statistics.median(seconds.pop("plain"))
        milliseconds = milliseconds or 1e3 * base / num_batches
        for row, values in seconds.items():
            ratios[row, column] = statistics.median(values) / base
    return milliseconds, ratios


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--models", nargs="+", choices=SIZES)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--output", default="examples/output")
    options = parser.parse_args(arguments)
    quick = options.quick
    names = options.models or (["mlp"] if quick else ["mlp", "cnn"])
    repeats = options.repeats or (1 if quick else 9)
    batch_size, num_batches = (4, 4) if quick else (options.batch_size, 40)
    columns, lines = {}, []
    for name in names:
        milliseconds, ratios = measure(
            name, batch_size, num_batches, repeats, quick
        )
        print(f"{name} ({SIZES[name]}): a plain step {milliseconds:.2f} ms")
        for (row, column), ratio in ratios.items():
            columns[row, f"{name}, {column}"] = ratio
    rows = dict.fromkeys(row for row, _ in columns)
    heads = dict.fromkeys(head for _, head in columns)
    lines.append("| learned by | " + " | ".join(heads) + " |")
    lines.append("| --- |" + " --- |" * len(heads))
    for row in rows:
        values = [f"{columns[row, head]:.2f}" for head in heads]
        lines.append(f"| {row} | " + " | ".join(values) + " |")
    table = "\n".join(lines)
    print(table)
    folder = pathlib.Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "callback_cost.md").write_text(table + "\n")
    return {key: float(np.round(value, 2)) for key, value in columns.items()}


if __name__ == "__main__":
    main()
