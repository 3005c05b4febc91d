"""What the options that save gradients do to the hypergradient.

A small convolutional network on scikit-learn's digits, one L2 strength for each
weight, chains of 20 steps on real batches. The hypergradient with an option
(`outer_every`, `hessian_product="difference"`) is held to the one without: the
same weights, batches and estimator. From weights as they are at the start of
training and from weights that were trained, with another outer batch at each
step, and with the same larger one at all steps.

    python examples/benchmarks/shortcuts.py [--quick] [--repeats 10]
        [--activation tanh] [--output FOLDER]
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import keras_hposgld as hs  # noqa: E402

NUM_STEPS = 20
BATCH_SIZE = 64
LEARNING_RATE = 0.02
ESTIMATORS = {
    "HPO-SGLD": hs.estimators.HPOSGLD,
    "AdjointSGLD": hs.estimators.AdjointSGLD,
}


def shortcuts(quick):
    """Estimator and option of each row."""
    rows = {
        f"{name}, outer_every={interval}": (name, {"outer_every": interval})
        for name in ESTIMATORS
        for interval in ((2, 5) if quick else (2, 5, 10, 20))
    }
    option = {"hessian_product": "difference"}
    return rows | {"AdjointSGLD, difference": ("AdjointSGLD", option)}


def make_model(activation):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same", activation=activation),
            layers.Conv2D(32, 3, strides=2, activation=activation),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )


def make_problem(model):
    """The bilevel problem of log strengths, one for each weight."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def outer(log_strengths, weights, batch):
        x, y = batch
        return loss(y, model.stateless_call(weights, [], x)[0])

    def inner(log_strengths, weights, batch):
        penalties = [
            tf.reduce_sum(tf.exp(s) * w**2)
            for s, w in zip(log_strengths, weights, strict=True)
        ]
        return outer(log_strengths, weights, batch) + tf.add_n(penalties)

    return hs.BilevelProblem(inner, outer)


def draw(rng, x, y):
    """The batches of a chain."""
    rows = rng.integers(0, len(x), (NUM_STEPS, BATCH_SIZE))
    return tf.constant(x[rows]), tf.constant(y[rows])


def repeat(x, y):
    """One batch for all steps of a chain."""
    shape = NUM_STEPS, 4 * BATCH_SIZE
    rows = np.broadcast_to(np.arange(shape[1]), shape)
    return tf.constant(x[rows]), tf.constant(y[rows])


def agreement(estimate, reference):
    """Cosine of the angle, and ratio of the lengths."""
    a, b = (
        np.concatenate([np.ravel(x) for x in xs])
        for xs in (estimate, reference)
    )
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    return a @ b / np.prod(lengths), lengths[0] / lengths[1]


def compare(problem, weights, batches, rows):
    """Cosine and ratio of lengths to no shortcut, by row."""
    half = NUM_STEPS // 2
    strengths = [tf.fill(w.shape, tf.math.log(1e-3)) for w in weights]
    sampler = hs.SGLD(LEARNING_RATE, seed=0)

    def solve_all(name, option):
        estimator = ESTIMATORS[name](half, half, **option)

        @tf.function(autograph=False)
        def solve(inner, outer):
            return hs.hypergradient(
                problem,
                strengths,
                weights,
                estimator=estimator,
                sampler=sampler,
                inner_batches=inner,
                outer_batches=outer,
            ).hypergradient

        return [solve(*pair) for pair in batches]

    exact = {name: solve_all(name, {}) for name in ESTIMATORS}
    results = {}
    for row, (name, option) in rows.items():
        pairs = zip(solve_all(name, option), exact[name], strict=True)
        results[row] = np.mean([agreement(*pair) for pair in pairs], axis=0)
    return results


def format_table(results):
    lines = [
        f"{'cosine, length':28s}" + "".join(f"{case:>19s}" for case in results),
        "-" * (28 + 19 * len(results)),
    ]
    for row in next(iter(results.values())):
        cells = "".join(
            f"{found[row][0]:12.4f} {found[row][1]:6.3f}"
            for found in results.values()
        )
        lines.append(f"{row:28s}{cells}")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few rows")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--activation", default="relu")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent.parent / "output",
    )
    options = parser.parse_args(arguments)
    rows, epochs = shortcuts(options.quick), 15
    if options.quick:
        epochs, options.repeats = 1, 2
    options.output.mkdir(parents=True, exist_ok=True)
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1) / 16).astype("float32")
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    model = make_model(options.activation)
    problem = make_problem(model)
    inner = [draw(rng, x[:900], y[:900]) for _ in range(options.repeats)]
    outer = [draw(rng, x[900:], y[900:]) for _ in range(options.repeats)]
    batches = {
        "drawn": list(zip(inner, outer, strict=True)),
        "one batch": [(pair, repeat(x[900:], y[900:])) for pair in inner],
    }
    results = {}
    for start in ("fresh", "trained"):
        if start == "trained":
            model.compile(
                keras.optimizers.SGD(0.1),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
            model.fit(x[:900], y[:900], epochs=epochs, verbose=0)
        weights = [tf.constant(v.numpy()) for v in model.trainable_variables]
        for case, chains in batches.items():
            results[f"{start}, {case}"] = compare(
                problem, weights, chains, rows
            )
    table = format_table(results)
    print(table)
    (options.output / "shortcuts.txt").write_text(table + "\n")
    return results


if __name__ == "__main__":
    main()
