"""Table 1 of the paper, measured: time and memory of the estimators.

Linear regression with 200 000 weights and one L2 strength for each group of
weights. Time and peak memory of one hypergradient are measured over the number
of inner steps T (with 10 strengths) and over the number of strengths (with
T = 20), each point in a process of its own. Ratios matter, not milliseconds.

    python examples/benchmarks/complexity.py [--quick] [--output FOLDER]
"""

import argparse
import csv
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

METHODS = ("HPO-SGLD", "AdjointSGLD", "RMD", "FMD")
NUM_WEIGHTS = 200_000
FULL = {
    "steps": (10, 30, 100, 300, 1000),
    "strengths": (1, 10, 100, 1000, 10_000),
    "repeats": 5,
}
QUICK = {"steps": (5, 10), "strengths": (10,), "repeats": 1}
FMD_LIMIT = 10_000  # steps times strengths: beyond, a point takes minutes


def measure(method, num_steps, num_strengths, repeats):
    """Median seconds and peak mebibytes beyond what stood before."""
    import tensorflow as tf

    import keras_hposgld as hs

    kinds, half = hs.estimators, num_steps // 2
    estimator = {
        "HPO-SGLD": lambda: kinds.HPOSGLD(half, num_steps - half),
        "AdjointSGLD": lambda: kinds.AdjointSGLD(half, num_steps - half),
        "RMD": lambda: kinds.RMD(num_steps=num_steps),
        "FMD": lambda: kinds.FMD(num_steps, max_hyperparameters=num_strengths),
    }[method]()
    x = tf.random.stateless_normal([16, NUM_WEIGHTS], [1, 2]) / NUM_WEIGHTS**0.5
    y = tf.random.stateless_normal([16], [3, 4])

    def data_loss(weights):
        return tf.reduce_mean((tf.linalg.matvec(x, weights) - y) ** 2)

    def inner(strengths, weights, batch):
        groups = tf.reshape(weights, [num_strengths, -1])
        return data_loss(weights) + tf.reduce_sum(
            strengths[:, tf.newaxis] * groups**2
        )

    problem = hs.BilevelProblem(inner, lambda s, w, batch: data_loss(w))
    sampler = hs.SGLD(0.1)

    @tf.function(autograph=False)
    def solve(strengths, weights):
        return hs.hypergradient(
            problem, strengths, weights, estimator=estimator, sampler=sampler
        ).hypergradient

    arguments = tf.fill([num_strengths], 0.01), tf.zeros([NUM_WEIGHTS])
    solve.get_concrete_function(*arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        solve(*arguments).numpy()
        seconds.append(time.perf_counter() - begin)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return statistics.median(seconds[1:] or seconds), (after - before) / 1024


def measure_apart(method, num_steps, num_strengths, repeats):
    """`measure` in a process of its own, so that peaks do not mix."""
    point = json.dumps([method, num_steps, num_strengths, repeats])
    result = subprocess.run(
        [sys.executable, __file__, "--point", point],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def save_picture(lines, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for row, sweep in enumerate(("inner steps", "strengths")):
        for method in METHODS:
            points = [r for r in lines if r[0] == sweep and r[1] == method]
            place = [r[2] if sweep == "inner steps" else r[3] for r in points]
            for axis, column in zip(axes[row], (4, 5), strict=True):
                values = [max(r[column], 1e-3) for r in points]
                axis.loglog(place, values, ".-", label=method)
        for axis, label in zip(
            axes[row], ("seconds", "peak memory (MiB)"), strict=True
        ):
            axis.set(xlabel=sweep, ylabel=label)
    axes[0, 0].legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few points")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent.parent / "output",
    )
    options = parser.parse_args(arguments)
    if options.point:
        print(json.dumps(measure(*json.loads(options.point))))
        return None
    settings = QUICK if options.quick else FULL
    options.output.mkdir(parents=True, exist_ok=True)
    points = [
        *(("inner steps", steps, 10) for steps in settings["steps"]),
        *(("strengths", 20, number) for number in settings["strengths"]),
    ]
    print(
        f"{'':12s} {'T':>6s} {'strengths':>9s} {'seconds':>9s} {'MiB':>8s}",
        flush=True,
    )
    lines = []
    for method in METHODS:
        for sweep, steps, strengths in points:
            if method == "FMD" and steps * strengths > FMD_LIMIT:
                continue
            seconds, memory = measure_apart(
                method, steps, strengths, settings["repeats"]
            )
            lines.append([sweep, method, steps, strengths, seconds, memory])
            print(
                f"{method:12s} {steps:6d} {strengths:9d} {seconds:9.4f} "
                f"{memory:8.1f}",
                flush=True,
            )
    table_path = options.output / "complexity.csv"
    with table_path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("sweep method T strengths seconds mebibytes".split())
        writer.writerows(lines)
    picture_path = options.output / "complexity.png"
    save_picture(lines, picture_path)
    print(f"table: {table_path}\npicture: {picture_path}")
    return lines


if __name__ == "__main__":
    main()
