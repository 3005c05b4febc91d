"""Learns initial weights from which a network draws an image in a few steps.

An implicit neural representation is a network from coordinates to the values
of one image. From a standard start it takes hundreds of steps. Here the start
is the hyperparameter of `MetaModel`: learned on crops of three of the
photographs that come with scikit-image, and tested on crops of the fourth,
each of the four in turn. The table gives the peak signal-to-noise ratio after
2, 5 and 10 steps of plain gradient descent from each start, beside what a
sceptic would ask for: a standard start with Adam, and a start trained on all
crops at once. Step sizes are chosen on training crops, for each row by itself:
of a learned start, after a third of the iterations.

    python examples/learn_image_start.py [--quick] [--output FOLDER]
        [--estimators hpo_sgld rmd first_order] [--iterations 300]
"""

import argparse
import os
import pathlib
import time
from functools import partial

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import skimage  # noqa: E402

import keras_hposgld as hs  # noqa: E402

PHOTOGRAPHS = ("astronaut", "camera", "coffee", "chelsea")
STEPS = (2, 5, 10)
CHAIN = 5  # inner steps while learning
GRID = (0.01, 0.03, 0.1, 0.3)  # for plain descent
ADAM_GRID = (0.0003, 0.001, 0.003, 0.01)
FREQUENCY = 30.0  # of the first layer's sines
STANDARD = "standard start"
ADAM = "standard start, Adam"
JOINT = "trained on all crops"
FILE_NAME = "learn_image_start"

ESTIMATORS = {
    "hpo_sgld": (
        "HPO-SGLD",
        hs.estimators.HPOSGLD(0, CHAIN, curvature="telescoped"),
    ),
    "rmd": ("RMD (MAML)", hs.estimators.RMD(num_steps=CHAIN)),
    "first_order": (
        "first-order MAML",
        hs.estimators.FirstOrder(num_steps=CHAIN),
    ),
}


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short run")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--meta-batch-size", type=int, default=4)
    parser.add_argument("--size", type=int, default=32, help="of a crop")
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--hyper-learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--estimators",
        nargs="+",
        choices=list(ESTIMATORS),
        default=list(ESTIMATORS),
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--photographs", nargs="+", default=list(PHOTOGRAPHS))
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.iterations, options.meta_batch_size = 3, 2
        options.size, options.units = 8, 16
        options.photographs = options.photographs[:1]
    return options


def photograph(name):
    """One of scikit-image's photographs, gray, from 0 to 1."""
    image = getattr(skimage.data, name)()
    return skimage.color.rgb2gray(image) if image.ndim == 3 else image / 255


def random_crops(images, number, size, seed):
    """Squares of random place and extent, all shrunk to one size."""
    random = np.random.default_rng(seed)
    crops = []
    for index in range(number):
        image = images[index % len(images)]
        extent = random.integers(3 * size, min(image.shape) + 1)
        top, left = (
            random.integers(length - extent + 1) for length in image.shape
        )
        crop = image[top : top + extent, left : left + extent]
        crops.append(
            skimage.transform.resize(crop, (size, size), anti_aliasing=True)
        )
    return np.array(crops, "float32")


def coordinates(size):
    axis = np.linspace(-1.0, 1.0, size, dtype="float32")
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def as_tasks(crops, meta_batch_size=None, seed=0):
    """A dataset of meta-batches: support and query are all pixels."""
    import tensorflow as tf

    x = coordinates(crops.shape[1])
    values = crops.reshape(len(crops), -1, 1)
    dataset = tf.data.Dataset.from_tensor_slices(values)
    if meta_batch_size is not None:
        dataset = dataset.shuffle(len(crops), seed=seed).repeat()
    dataset = dataset.map(lambda y: ((x, y), (x, y)))
    return dataset.batch(meta_batch_size or len(crops))


@keras.saving.register_keras_serializable(package="examples")
def sine(x):
    return keras.ops.sin(FREQUENCY * x)


def make_network(units, seed):
    """Three layers of sines (Sitzmann et al., 2020), from place to value."""

    def uniform(bound, offset):
        return keras.initializers.RandomUniform(-bound, bound, seed + offset)

    hidden = np.sqrt(6 / units) / FREQUENCY
    layers = [keras.Input((2,))]
    for number, bound in enumerate([1 / 2, hidden, hidden]):
        layers.append(
            keras.layers.Dense(
                units, sine, kernel_initializer=uniform(bound, number)
            )
        )
    layers.append(keras.layers.Dense(1, kernel_initializer=uniform(hidden, 3)))
    return keras.Sequential(layers)


def psnr(predicted, crops):
    """Decibels, for values from 0 to 1; of each image."""
    error = predicted.reshape(len(crops), -1) - crops.reshape(len(crops), -1)
    return -10 * np.log10(np.mean(error**2, axis=1))


class Start:
    """Initial weights, with the plain descent that follows them."""

    def __init__(self, network, learning_rate, estimator=None, **learning):
        self.meta = hs.MetaModel(network, seed=0)
        self.learning_rate = learning_rate
        self.estimator = estimator
        self.learning = learning
        self.compile(CHAIN)

    def compile(self, num_steps):
        hyper_optimizer = self.learning and keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(
                self.learning["hyper_learning_rate"],
                self.learning["iterations"],
            )
        )
        self.meta.compile(
            optimizer=hs.SGLD(self.learning_rate),
            loss="mse",
            hypergradient=self.estimator,
            hyper_optimizer=hyper_optimizer or None,
            adaptation_steps=num_steps,
        )

    def learn(self, tasks):
        return self.meta.fit(
            tasks, steps_per_epoch=self.learning["iterations"], verbose=0
        )

    def draw(self, crops, num_steps):
        """What the network draws of each crop after some steps."""
        self.compile(num_steps)
        return self.meta.predict(as_tasks(crops), verbose=0)


def best_rate(make_start, crops, grid):
    """The learning rate with the best drawing after `CHAIN` steps."""

    def score(rate):
        try:
            drawings = make_start(rate).draw(crops, CHAIN)
        except RuntimeError:  # learning has stopped: not finite
            return -np.inf
        return np.nan_to_num(psnr(drawings, crops).mean(), nan=-np.inf)

    return max(grid, key=score)


def draw_by_adam(network, learning_rate, crops, num_steps):
    """Drawings by Adam from the weights that a network has."""
    x, start = coordinates(crops.shape[1]), network.get_weights()
    drawings = []
    network.compile(keras.optimizers.Adam(learning_rate), loss="mse")
    for crop in crops:
        network.set_weights(start)
        for variable in network.optimizer.variables:
            if variable.name != "learning_rate":
                variable.assign(keras.ops.zeros_like(variable))
        for _ in range(num_steps):
            network.train_on_batch(x, crop.reshape(-1, 1))
        drawings.append(network.predict_on_batch(x))
    network.set_weights(start)
    return np.array(drawings)


def run(name, options):
    """All starts for one held-out photograph: `{method: (drawings, time)}`."""
    print(f"test photograph: {name}", flush=True)
    others = [photograph(other) for other in PHOTOGRAPHS if other != name]
    number = 6 if options.quick else 300
    train = random_crops(others, number, options.size, options.seed)
    test = random_crops(
        [photograph(name)], 2 if options.quick else 20, options.size, 1000
    )
    few = train[:12]
    results = {}

    def fresh():
        return make_network(options.units, options.seed)

    def add(method, draw, seconds, rate):
        drawings = {steps: draw(steps) for steps in STEPS}
        scores = [psnr(drawings[steps], test).mean() for steps in STEPS]
        results[method] = (scores, seconds, drawings)
        shown = ", ".join(f"{score:.1f}" for score in scores)
        print(
            f"  {method:24s} {shown} dB  {seconds:5.0f} s  step {rate}",
            flush=True,
        )

    rate = best_rate(lambda rate: Start(fresh(), rate), few, GRID)
    standard = Start(fresh(), rate)
    add(STANDARD, lambda steps: standard.draw(test, steps), 0.0, rate)

    def score_of_adam(rate):
        return psnr(draw_by_adam(fresh(), rate, few, CHAIN), few).mean()

    adam_rate = max(ADAM_GRID, key=score_of_adam)
    network = fresh()
    add(
        ADAM,
        lambda steps: draw_by_adam(network, adam_rate, test, steps),
        *(0.0, adam_rate),
    )

    begin = time.process_time()
    network = fresh()
    network.compile(keras.optimizers.Adam(1e-3), loss="mse")
    x = np.tile(coordinates(options.size), (len(train), 1))
    network.fit(
        x,
        train.reshape(-1, 1),
        batch_size=1024,
        epochs=1 if options.quick else 5,
        verbose=0,
    )
    seconds = time.process_time() - begin
    weights = network.get_weights()

    def joint(rate):
        network = fresh()
        network.set_weights(weights)
        return Start(network, rate)

    rate = best_rate(joint, few, GRID)
    joint_start = joint(rate)
    add(JOINT, lambda steps: joint_start.draw(test, steps), seconds, rate)

    def learned(estimator, rate, iterations):
        start = Start(
            *(fresh(), rate, estimator),
            hyper_learning_rate=options.hyper_learning_rate,
            iterations=iterations,
        )
        start.learn(as_tasks(train, options.meta_batch_size, options.seed))
        return start

    for key in options.estimators:
        label, estimator = ESTIMATORS[key]
        short = partial(learned, estimator, iterations=options.iterations // 3)
        rate = best_rate(short, few, GRID)
        begin = time.process_time()
        start = learned(estimator, rate, options.iterations)
        seconds = time.process_time() - begin
        add(label, lambda steps, s=start: s.draw(test, steps), seconds, rate)
    return test, results


def format_table(runs):
    """Mean and spread over the held-out photographs."""
    columns = "".join(f"{f'{steps} steps':>15s}" for steps in STEPS)
    lines = [f"{'PSNR in dB':24s}{columns}   time", "-" * 78]
    for method in runs[0][1]:
        scores = np.array([results[method][0] for _, results in runs])
        seconds = np.mean([results[method][1] for _, results in runs])
        cells = "".join(
            f"   {mean:5.1f} +- {spread:3.1f}"
            for mean, spread in zip(scores.mean(0), scores.std(0), strict=True)
        )
        lines.append(f"{method:24s}{cells} {seconds:5.0f} s")
    return "\n".join(lines)


def save_picture(runs, path):
    """Saves the first crop of each photograph, and what each start draws."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    methods = list(runs[0][1])
    figure, panels = plt.subplots(
        len(runs),
        1 + len(methods),
        figsize=(1.6 * (1 + len(methods)), 1.7 * len(runs)),
        layout="constrained",
        squeeze=False,
    )
    for number, (test, results) in enumerate(runs):
        drawings = [results[method][2][STEPS[1]][0] for method in methods]
        for axes, drawing, title in zip(
            panels[number],
            [test[0], *drawings],
            ["image", *methods],
            strict=True,
        ):
            axes.imshow(drawing.reshape(test[0].shape), "gray", vmin=0, vmax=1)
            axes.set_axis_off()
            if number == 0:
                axes.set_title(title.replace(", ", ",\n"), fontsize=7)
    figure.suptitle(f"after {STEPS[1]} steps", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments=None):
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    print(__doc__.split("\n\n")[1], flush=True)
    runs = [run(name, options) for name in options.photographs]
    table = format_table(runs)
    print(f"\n{table}\n")
    (options.output / f"{FILE_NAME}.txt").write_text(table + "\n")
    path = options.output / f"{FILE_NAME}.png"
    save_picture(runs, path)
    print(f"picture: {path}")
    return runs


if __name__ == "__main__":
    main()
