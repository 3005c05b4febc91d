"""Peak memory against the length of the chain and the number of weights.

A multilayer perceptron with one L2 strength for each weight. The rows of the
callback are plain fits by Adam in which `LearnHyperparameters` learns weight
decay, at its defaults and with one for each weight. Each point is a
process of its own, in which nothing but one method runs; the figure is the peak
resident memory beyond what there was once TensorFlow was loaded. Batches are
one example of eight numbers, so that next to nothing of it is the batches of a
chain, which all lie in memory before it begins. Beside it: what
`learner.memory_estimate()` says in advance.

    python examples/benchmarks/memory.py [--quick] [--output FOLDER]
"""

import argparse
import csv
import json
import os
import pathlib
import resource
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CALLBACKS = {"callback": "auto", "callback, per weight": "parameter"}
PLAIN = ("plain SGD", "plain Adam", *CALLBACKS)
LEARNED = ("HPO-SGLD", "AdjointSGLD", "IFT-CG", "RMD")
FULL = {"steps": (10, 100, 1000), "units": (1000, 2000, 4000)}
QUICK = {"steps": (2,), "units": ()}
QUICK_METHODS = ("plain Adam", "callback", "HPO-SGLD", "RMD")
UNITS, STEPS = 1000, 10  # where the other of the two varies
BATCH, INPUTS = 1, 8  # small, for batches are not to count


def peak_memory():
    """Peak resident memory so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(method, num_steps, units):
    """Weights, MiB at the peak beyond the start, and MiB as estimated."""
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_hposgld as hs

    keras.utils.set_random_seed(0)
    layer = {"units": units, "activation": "relu"}
    learned = method in LEARNED

    def dense(**arguments):
        regularizer = hs.regularizers.LearnableL2(1e-4) if learned else None
        return keras.layers.Dense(kernel_regularizer=regularizer, **arguments)

    before = peak_memory()
    model = keras.Sequential(
        [
            keras.Input((INPUTS,)),
            dense(**layer),
            dense(**layer),
            dense(units=10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, INPUTS)).astype("float32")
    y = rng.integers(0, 10, BATCH)
    arguments = {"batch_size": BATCH, "verbose": 0}
    estimate = 0
    if not learned:
        kinds = keras.optimizers
        kind = kinds.SGD if method == "plain SGD" else kinds.Adam
        model.compile(kind(1e-3), loss=loss, jit_compile=False)
        data = tf.data.Dataset.from_tensors((x, y)).repeat(max(num_steps, 10))
        callbacks = []
        if method in CALLBACKS:
            decay = hs.regularizers.LearnableWeightDecay(
                granularity=CALLBACKS[method]
            )
            callbacks.append(
                hs.callbacks.LearnHyperparameters(
                    (x, y), batch_size=BATCH, regularizer=decay
                )
            )
        for _ in range(3):
            model.fit(data, verbose=0, callbacks=callbacks)
    else:
        kinds, half = hs.estimators, num_steps // 2
        estimator = {
            "HPO-SGLD": lambda: kinds.HPOSGLD(half, num_steps - half),
            "AdjointSGLD": lambda: kinds.AdjointSGLD(half, num_steps - half),
            "IFT-CG": lambda: kinds.IFTCG(10, num_steps=num_steps),
            "RMD": lambda: kinds.RMD(num_steps=num_steps),
        }[method]()
        learner = hs.BilevelModel(model, seed=0)
        learner.compile(hs.SGLD(1e-3), loss=loss, hypergradient=estimator)
        estimate = learner.memory_estimate().total / 2**20
        for _ in range(3):
            learner.fit(x, y, outer_data=(x, y), **arguments)
    number = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return number, peak_memory() - before, estimate


def measure_apart(*point):
    """`measure` in a process of its own, so that peaks do not mix."""
    result = subprocess.run(
        [sys.executable, __file__, "--point", json.dumps(point)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def save_picture(lines, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.6), layout="constrained"
    )
    for method in (*PLAIN, *LEARNED):
        for axes, sweep, column in ((left, "steps", 2), (right, "weights", 3)):
            points = [r for r in lines if r[0] == sweep and r[1] == method]
            axes.loglog(
                [r[column] for r in points],
                [r[4] for r in points],
                ".-",
                label=method,
            )
    left.set(xlabel="length of the chain", ylabel="peak memory (MiB)")
    right.set(xlabel="weights")
    left.legend(fontsize=8, frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
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
    options.output.mkdir(parents=True, exist_ok=True)
    settings = QUICK if options.quick else FULL
    units = 32 if options.quick else UNITS
    points = [
        *(("steps", steps, units) for steps in settings["steps"]),
        *(("weights", STEPS, number) for number in settings["units"]),
    ]
    table = [
        f"{'':20s} {'T':>5s} {'weights':>11s} {'MiB':>8s} {'estimate':>9s}",
        "-" * 57,
    ]
    print("\n".join(table), flush=True)
    lines = []
    methods = QUICK_METHODS if options.quick else (*PLAIN, *LEARNED)
    for method in methods:
        for sweep, steps, number in points:
            weights, peak, estimate = measure_apart(method, steps, number)
            lines.append([sweep, method, steps, weights, peak, estimate])
            shown = f"{estimate:9.0f}" if estimate else ""
            table.append(
                f"{method:20s} {steps:5d} {weights:11,d} {peak:8.0f} {shown}"
            )
            print(table[-1], flush=True)
    (options.output / "memory.txt").write_text("\n".join(table) + "\n")
    with (options.output / "memory.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("sweep method T weights mebibytes estimate".split())
        writer.writerows(lines)
    path = options.output / "memory.png"
    save_picture(lines, path)
    print(f"picture: {path}")
    return lines


if __name__ == "__main__":
    main()
