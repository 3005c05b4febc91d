"""What one callback gains: the digits with 256 columns of pure noise.

300 images to train on, 300 to learn strengths on, 1 197 to test. The network
has two hidden layers of 64 units, and is trained by Adam in 2 000 steps. The
table compares what people do with such data today: stop early, search one good
weight decay, train with that on everything. The callback learns a decay for
each input while the network trains.

    python experiments/demo.py [--quick] [--seeds 3] [--output FOLDER]
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from learning import methods  # noqa: E402
from learning import sets  # noqa: E402

import keras_hposgld as hs  # noqa: E402

NUM_PIXELS = 64


def plain(split, seed):
    """What needs no callback."""
    rows = methods.early_stopping(split, seed)
    return rows + methods.constants(split, seed), None


def coarse(split, seed):
    """One strength for each tensor, or one for each input without a prior."""
    rows = methods.learned(
        split, seed, "callback, per tensor", False, granularity="tensor"
    )
    rows += methods.learned(
        split, seed, "callback, per input", False, granularity="input"
    )
    return rows + methods.bilevel(split, seed), None


def default(split, seed):
    """The callback at its defaults; also the course of the strengths."""
    course = hs.callbacks.HyperparameterHistory()
    rows = methods.learned(split, seed, watching=[course])
    return rows, np.array(next(iter(course.values.values())))


def task(argument):
    """One part of the table, in a process of its own."""
    function, seed, is_quick = argument
    keras.config.disable_interactive_logging()
    if is_quick:
        methods.NUM_EPOCHS, methods.STEPS, methods.GRID = 2, 10, (0.1, 1.0)
    return function(sets.load(sets.digits_and_noise, seed), seed)


def table(rows):
    """Mean and standard deviation over the seeds, a line for each method."""
    head = (
        f"{'':30s} {'cross-entropy':>15s} {'test accuracy':>15s} {'time':>6s}"
    )
    lines = [head, "-" * len(head)]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        losses, accuracies, seconds = (
            np.array([row[key] for row in own])
            for key in ("loss", "accuracy", "seconds")
        )
        lines.append(
            f"{method:30s} {losses.mean():.3f} +- {losses.std():.3f}  "
            f"{accuracies.mean():.3f} +- {accuracies.std():.3f} "
            f"{seconds.mean():4.0f} s"
        )
    return "\n".join(lines)


def save_pictures(course, folder):
    """Saves the map of the strengths and their course; returns the paths."""
    import matplotlib.figure

    last = course[-1]
    limits = (last.min(), last.max())
    figure = matplotlib.figure.Figure((7.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, part, side, title in (
        (left, last[:NUM_PIXELS], 8, "64 pixels"),
        (right, last[NUM_PIXELS:], 16, "256 columns of noise"),
    ):
        hs.plotting.plot_regularization_map(
            part, (side, side), limits=limits, label="decay", ax=axis
        )
        axis.set_title(title)
    paths = [folder / "demo_map.png", folder / "demo_course.png"]
    figure.savefig(paths[0], dpi=150)

    figure = matplotlib.figure.Figure((6, 3.4), layout="constrained")
    axis = figure.subplots()
    steps = methods.STEPS * np.arange(len(course))
    for label, part, color in (
        ("noise", course[:, NUM_PIXELS:], "tab:red"),
        ("pixels", course[:, :NUM_PIXELS], "tab:blue"),
    ):
        low, middle, high = np.quantile(part, [0.1, 0.5, 0.9], axis=1)
        axis.fill_between(steps, low, high, color=color, alpha=0.2)
        axis.plot(steps, middle, color=color, label=label)
    axis.set(yscale="log", xlabel="step", ylabel="decay (median, 10 to 90 %)")
    axis.legend()
    figure.savefig(paths[1], dpi=150)
    return paths


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
    )
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    print(__doc__.split("\n\n    ")[0], flush=True)
    parts = [
        (function, seed, options.quick)
        for function in (plain, coarse, default)
        for seed in range(1 if options.quick else options.seeds)
    ]
    if options.quick:
        results = list(map(task, parts))
    else:
        # TensorFlow cannot go on in a process that was forked.
        with concurrent.futures.ProcessPoolExecutor(
            max_workers=min(len(parts), os.cpu_count() or 1),
            mp_context=multiprocessing.get_context("spawn"),
        ) as pool:
            results = []
            for part, result in zip(parts, pool.map(task, parts), strict=True):
                results.append(result)
                for row in result[0]:
                    print(
                        f"  seed {part[1] + 1}, {row['method']}: test "
                        f"cross-entropy {row['loss']:.3f}",
                        flush=True,
                    )
    text = table([row for rows, _ in results for row in rows])
    print(f"\n{text}\n")
    (options.output / "demo.txt").write_text(text + "\n")
    course = next(course for _, course in results if course is not None)
    least = np.argsort(course[-1])[:20]
    print(
        "of the 20 inputs with the least decay, "
        f"{np.sum(least < NUM_PIXELS)} are pixels"
    )
    for path in save_pictures(course, options.output):
        print(f"picture: {path}")


if __name__ == "__main__":
    main()
