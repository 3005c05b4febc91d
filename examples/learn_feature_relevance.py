"""Which inputs matter? Learned with the weights, one strength per input.

scikit-learn's digits get 256 columns of pure noise. With 300 training images
a network fits the noise, and one constant for all weights cannot tell pixels
from noise. HPO-SGLD learns an L2 strength per input unit on 300 outer images
while the network trains. The table compares it with what a sceptic would do
first: search one good constant, and train with it on everything.

    python examples/learn_feature_relevance.py [--quick] [--output FOLDER]
"""

import argparse
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import keras_hposgld as hs  # noqa: E402

NUM_NOISE = 256
BATCH_SIZE = 100
LEARNING_RATE = 0.05
TEMPERATURE = 1e-8
START = 1e-2
GRID = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def load_data(seed):
    """Training, outer and test set: 300, 300 and 1197 images."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(digits.target))
    x, y = digits.data[order], digits.target[order]
    x = (x - x[:300].mean(axis=0)) / (x[:300].std(axis=0) + 1.0)
    x = np.hstack([x, rng.normal(size=(len(x), NUM_NOISE))]).astype("float32")
    return (x[:300], y[:300]), (x[300:600], y[300:600]), (x[600:], y[600:])


def make_network(regularizer):
    """A multilayer perceptron; `regularizer()` makes one for each kernel."""
    return keras.Sequential(
        [keras.Input((64 + NUM_NOISE,))]
        + [
            keras.layers.Dense(
                units, activation, kernel_regularizer=regularizer()
            )
            for units, activation in ((256, "relu"), (256, "relu"), (10, None))
        ]
    )


def score(model, data):
    """Accuracy and cross-entropy, without the regularization."""
    x, y = data
    logits = model.predict(x, batch_size=2000, verbose=0)
    return np.mean(logits.argmax(axis=1) == y), float(LOSS(y, logits))


def stream(data):
    """Endless shuffled batches, for plain Keras training by steps."""
    dataset = tf.data.Dataset.from_tensor_slices(data).cache()
    dataset = dataset.shuffle(len(data[0])).repeat().batch(BATCH_SIZE)
    return dataset.prefetch(tf.data.AUTOTUNE)


def train_constant(strength, data, num_steps):
    """Plain Keras training with one L2 constant for all kernels."""
    model = make_network(lambda: keras.regularizers.L2(strength))
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE), loss=LOSS, steps_per_execution=20
    )
    model.fit(stream(data), steps_per_epoch=num_steps, verbose=0)
    return model


def train_learned(
    granularity, inner, outer, epochs, say=None, hyper_learning_rate=0.05
):
    """HPO-SGLD; an epoch is ten outer iterations of 20 inner steps."""
    learner = hs.BilevelModel(
        make_network(
            lambda: hs.regularizers.LearnableL2(
                START, granularity=granularity, max_value=5.0
            )
        )
    )
    learner.compile(
        optimizer=hs.SGLD(LEARNING_RATE, temperature=TEMPERATURE),
        loss=LOSS,
        metrics=["accuracy"],
        hypergradient=hs.estimators.HPOSGLD(burn_in=10, num_samples=10),
        hyper_optimizer=keras.optimizers.Adam(hyper_learning_rate),
    )
    first_layer = []  # its strengths, epoch by epoch

    def record(epoch, logs):
        first_layer.append(next(iter(learner.hyperparameter_values().values())))
        if say:
            say(
                f"    outer iteration {10 * (epoch + 1):4d}: "
                f"outer loss {logs['outer_loss']:.3f}"
            )

    learner.fit(
        *inner,
        outer_data=outer,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        steps_per_epoch=10 * learner.hypergradient.num_steps,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=record)],
        verbose=0,
    )
    return learner, np.array(first_layer)


def run_seed(seed, epochs, say):
    """All rows of the table for one seed: `{name: (accuracy, loss, time)}`."""
    inner, outer, test = load_data(seed)
    everything = tuple(
        np.concatenate(pair) for pair in zip(inner, outer, strict=True)
    )
    num_steps = 200 * epochs
    rows = {}

    def row(name, train):
        keras.utils.set_random_seed(seed)
        begin = time.perf_counter()
        model, *rest = train()
        seconds = time.perf_counter() - begin
        rows[name] = (*score(model, test), seconds)
        say(f"  {name}: test accuracy {rows[name][0]:.3f}, {seconds:.0f} s")
        return (model, *rest)

    learner, strengths = row(
        "HPO-SGLD, one per input",
        lambda: train_learned("input", inner, outer, epochs, say),
    )
    row(
        "  the same, refit on all",
        lambda: (
            learner,
            learner.refit(
                stream(everything),
                optimizer=keras.optimizers.SGD(LEARNING_RATE),
                steps_per_epoch=num_steps,
                verbose=0,
            ),
        ),
    )
    for granularity in ("parameter", "tensor"):
        row(
            f"HPO-SGLD, one per {granularity}",
            lambda kind=granularity: train_learned(kind, inner, outer, epochs),
        )
    row(
        f"no tuning (L2 {START:g})",
        lambda: (train_constant(START, inner, num_steps),),
    )
    best = []

    def search():
        models = [train_constant(c, inner, num_steps) for c in GRID]
        losses = [score(model, outer)[1] for model in models]
        best.append(GRID[int(np.argmin(losses))])
        return (models[int(np.argmin(losses))],)

    row("best constant of a grid", search)
    row(
        "  the same, trained on all",
        lambda: (train_constant(best[0], everything, num_steps),),
    )
    # The sceptic's row pays for the search that found its constant.
    accuracy, loss, seconds = rows["  the same, trained on all"]
    seconds += rows["best constant of a grid"][2]
    rows["  the same, trained on all"] = (accuracy, loss, seconds)
    return rows, strengths


def format_table(runs):
    """Mean and standard deviation over the seeds, a row a method."""
    lines = [
        f"{'':27s} {'test accuracy':>15s} {'cross-entropy':>15s} {'time':>6s}",
        "-" * 66,
    ]
    order = list(runs[0])
    for name in [*order[4:], *order[2:4][::-1], *order[:2]]:
        values = np.array([rows[name] for rows in runs])
        mean, spread = values.mean(axis=0), values.std(axis=0)
        lines.append(
            f"{name:27s} {mean[0]:.3f} +- {spread[0]:.3f}  "
            f"{mean[1]:.3f} +- {spread[1]:.3f} {mean[2]:4.0f} s"
        )
    return "\n".join(lines)


def save_pictures(strengths, folder):
    """Saves the map of the strengths and their course; returns the paths."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colors
    from matplotlib import pyplot as plt

    last = strengths[-1]
    norm = colors.LogNorm(last.min(), last.max())
    figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.6), layout="constrained")
    axes[0].imshow(last[:64].reshape(8, 8), norm=norm, cmap="viridis")
    axes[0].set_title("64 pixels")
    image = axes[1].imshow(last[64:].reshape(16, 16), norm=norm, cmap="viridis")
    axes[1].set_title("256 noise features")
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, label="learned L2 strength")
    map_path = folder / "feature_relevance_map.png"
    figure.savefig(map_path, dpi=150)

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    iterations = 10 * np.arange(1, len(strengths) + 1)
    for label, part, color in (
        ("noise features", strengths[:, 64:], "tab:red"),
        ("pixels", strengths[:, :64], "tab:blue"),
    ):
        low, middle, high = np.quantile(part, [0.1, 0.5, 0.9], axis=1)
        axis.fill_between(iterations, low, high, color=color, alpha=0.2)
        axis.plot(iterations, middle, color=color, label=label)
    axis.set(
        yscale="log",
        xlabel="outer iteration",
        ylabel="L2 strength (median, 10 to 90 %)",
    )
    axis.legend()
    course_path = folder / "feature_relevance_course.png"
    figure.savefig(course_path, dpi=150)
    plt.close("all")
    return map_path, course_path


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
    epochs, num_seeds = (2, 1) if options.quick else (20, options.seeds)
    options.output.mkdir(parents=True, exist_ok=True)

    def say(text):
        print(text, flush=True)

    say(__doc__.split("\n\n")[1])
    runs, courses = [], []
    for seed in range(num_seeds):
        say(f"\nseed {seed + 1} of {num_seeds}")
        rows, strengths = run_seed(seed, epochs, say)
        runs.append(rows)
        courses.append(strengths)

    table = format_table(runs)
    pixels = np.mean([course[-1][:64].mean() for course in courses])
    noise = np.mean([course[-1][64:].mean() for course in courses])
    say(f"\n{table}\n")
    say(
        f"mean learned strength: {pixels:.4f} on pixels, {noise:.4f} on noise "
        f"({noise / pixels:.0f} times)"
    )
    (options.output / "feature_relevance.txt").write_text(table + "\n")
    for path in save_pictures(courses[0], options.output):
        say(f"picture: {path}")
    return runs, pixels, noise


if __name__ == "__main__":
    main()
