"""ViT-B/16 with as many hyperparameters as weights, beside plain training.

KerasHub's ViT-B/16 on images of 224x224, two a batch, and one L2 strength for
each of its 86 million weights. Each row is a process of its own: time of a
training step and peak resident memory. Random images, fresh weights: nothing
that is measured depends on what they show.

    python examples/benchmarks/vit_b16.py [--quick] [--repeats 3]
        [--steps 4] [--output FOLDER]
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

METHODS = ("plain SGD", "plain Adam", "HPO-SGLD", "AdjointSGLD")
FULL = {
    "image_shape": (224, 224, 3),
    "patch_size": (16, 16),
    "num_layers": 12,
    "num_heads": 12,
    "hidden_dim": 768,
    "mlp_dim": 3072,
}
QUICK = FULL | {
    "image_shape": (32, 32, 3),
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 16,
    "mlp_dim": 32,
}


def peak_memory():
    """Peak resident memory so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(method, size, batch_size, num_steps, repeats):
    """Weights, hyperparameters, seconds a step, GiB before and at the peak."""
    import keras
    import keras_hub
    import numpy as np

    import keras_hposgld as hs

    keras.utils.set_random_seed(0)
    model = keras_hub.models.ViTImageClassifier(
        keras_hub.models.ViTBackbone(**size), num_classes=10, preprocessor=None
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    number = num_steps * batch_size
    x = np.random.default_rng(0).normal(size=(number, *size["image_shape"]))
    data = x.astype("float32"), np.arange(number) % 10
    before, num_hyperparameters = peak_memory(), 0
    arguments = {"batch_size": batch_size, "verbose": 0}
    if method.startswith("plain"):
        optimizer = {
            "plain SGD": keras.optimizers.SGD(1e-3),
            "plain Adam": keras.optimizers.Adam(1e-3),
        }[method]
        model.compile(optimizer, loss=loss, jit_compile=False)
    else:
        model = hs.BilevelModel(
            model,
            regularizer=hs.regularizers.LearnableL2(1e-4),
            filter=lambda weight: True,
            seed=0,
        )
        half = num_steps // 2
        estimator = {
            "HPO-SGLD": hs.estimators.HPOSGLD,
            "AdjointSGLD": hs.estimators.AdjointSGLD,
        }[method](half, num_steps - half)
        model.compile(hs.SGLD(1e-3), loss=loss, hypergradient=estimator)
        num_hyperparameters = sum(
            int(np.prod(v.shape)) for v in model.hyperparameters
        )
        arguments["outer_data"] = data

    class Clock(keras.callbacks.Callback):
        seconds = []

        def on_epoch_begin(self, epoch, logs=None):
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append((time.perf_counter() - self.begin) / num_steps)

    # The first epoch traces, and makes what is needed.
    model.fit(*data, epochs=1 + repeats, callbacks=[Clock()], **arguments)
    number = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return (
        number,
        num_hyperparameters,
        statistics.median(Clock.seconds[1:]),
        before,
        peak_memory(),
    )


def measure_apart(*point):
    """`measure` in a process of its own, so that peaks do not mix."""
    result = subprocess.run(
        [sys.executable, __file__, "--point", json.dumps(point)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(result.stdout.splitlines()[-1])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="T, of a chain")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS)
    )
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
    results = {}
    for method in options.methods:
        results[method] = measure_apart(
            method,
            QUICK if options.quick else FULL,
            options.batch_size,
            options.steps,
            1 if options.quick else options.repeats,
        )
        print(
            method, *(f"{value:.3g}" for value in results[method]), flush=True
        )
    sgd = results.get("plain SGD", (0, 0, float("nan"), 0, float("nan")))
    adam = results.get("plain Adam", sgd)
    lines = [
        f"{'':12s} {'weights':>11s} {'hyperparam.':>11s} {'s / step':>9s} "
        f"{'/ SGD':>6s} {'peak GiB':>9s} {'/ Adam':>7s}",
        "-" * 71,
    ]
    for method, (number, hypers, seconds, _, peak) in results.items():
        lines.append(
            f"{method:12s} {number:11,d} {hypers:11,d} {seconds:9.2f} "
            f"{seconds / sgd[2]:6.2f} {peak:9.2f} {peak / adam[4]:7.2f}"
        )
    table = "\n".join(lines)
    print(f"\n{table}")
    (options.output / "vit_b16.txt").write_text(table + "\n")
    return results


if __name__ == "__main__":
    main()
