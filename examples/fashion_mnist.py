"""What the examples on Fashion-MNIST share: options, images, seeds and tables.

Keras is imported where it is used, not here: it reads `KERAS_HOME` when it is
imported, so that `--keras-home` has to be looked at before.
"""

import argparse
import os
import pathlib

import numpy as np


def make_parser(doc):
    """The options that all examples have.

    Args:
        doc: String, the docstring of the script.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--data", choices=["fashion_mnist", "digits"], default="fashion_mnist"
    )
    parser.add_argument(
        "--keras-home", help="folder with datasets/fashion-mnist"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
    )
    return parser


def use_keras_home(options):
    """Makes Keras look where `--keras-home` says, if called in time."""
    if options.keras_home:
        os.environ["KERAS_HOME"] = options.keras_home


def load_images(options):
    """Training pool and test set: images from 0 to 1, and their labels.

    Args:
        options: What the parser returned. Of scikit-learn's digits, where
            they are asked for, the first `num_digits` make the pool.
    """
    if options.data == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        x, y = digits.images[..., None] / 16, digits.target
        x = x.astype("float32")
        end = options.num_digits
        return (x[:end], y[:end]), (x[end:], y[end:])
    import keras

    home = options.keras_home
    if home and os.environ.get("KERAS_HOME") != home:
        raise ValueError(
            "`--keras-home` must be given on the command line, since Keras "
            f"reads it when it is imported. Received: keras_home={home!r} in "
            "a call of `main`. Set KERAS_HOME before Python starts."
        )
    try:
        pool, test = keras.datasets.fashion_mnist.load_data()
    except Exception as error:
        raise SystemExit(
            f"Fashion-MNIST could not be loaded: {error}\nKeras downloads it "
            "once, so this needs a network. Without one, pass `--keras-home "
            "FOLDER` where FOLDER/datasets/fashion-mnist has the four files "
            "(*-ubyte.gz), or `--data digits`."
        ) from error
    return tuple(
        ((x[..., None] / 255).astype("float32"), y.astype("int64"))
        for x, y in (pool, test)
    )


def say(text):
    print(text, flush=True)


def run_seeds(options, run, title="seed {seed}"):
    """What `run(seed)` returns, for each of the seeds that were asked for."""
    results = []
    for number in range(options.seeds):
        seed = options.first_seed + number
        say("\n" + title.format(seed=seed))
        results.append(run(seed))
    return results


def mean_and_spread(runs):
    """Mean and standard deviation over runs, of a tuple of numbers each."""
    values = np.array(runs)
    return values.mean(axis=0), values.std(axis=0)


def accuracy_table(experiments, width):
    """Accuracy, cross-entropy and time over the seeds, a row a method."""
    lines = [
        f"{'':{width}s} {'test accuracy':>15s} {'cross-entropy':>15s} "
        f"{'time':>6s}",
        "-" * (width + 39),
    ]
    for name in experiments[0].rows:
        mean, spread = mean_and_spread([run.rows[name] for run in experiments])
        lines.append(
            f"{name.split(' (')[0]:{width}s} {mean[0]:.3f} +- {spread[0]:.3f}  "
            f"{mean[1]:.3f} +- {spread[1]:.3f} {mean[2]:4.0f} s"
        )
    return "\n".join(lines)


def save(options, file_name, table, save_picture):
    """Prints and writes the table; `save_picture(path)` draws the picture."""
    say(f"\n{table}\n")
    (options.output / f"{file_name}.txt").write_text(table + "\n")
    path = options.output / f"{file_name}.png"
    save_picture(path)
    say(f"picture: {path}")
