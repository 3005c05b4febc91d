"""Learns how far to rotate training images, on Fashion-MNIST.

A small convolutional network trains on 5000 upright images of clothes, each
rotated at random within plus and minus a range. HPO-SGLD learns the range on
1000 outer images while the weights train. In variant A outer and test images
are rotated, by up to 90 degrees to either side: the range ought to open to
about that. In variant B they are upright: it ought to close. Beside it, fixed
ranges, the best of them on the outer images, and what a sceptic would do: train
on the outer images as well. All rows start from the same weights and take as
many steps of the same sampler, in batches of 50. The cross-entropy is that of
test images.

    python examples/learn_invariance_fashion_mnist.py [--quick]
        [--output FOLDER] [--data fashion_mnist|digits] [--keras-home FOLDER]
        [--seeds 3] [--first-seed 0] [--estimators NAME NAME ...]

Keras downloads the images once. `--keras-home` names a folder that has them
already (in `datasets/fashion-mnist`); `--data digits` takes scikit-learn's
digits, which need no download.
"""

import os
import time

from fashion_mnist import load_images
from fashion_mnist import make_parser
from fashion_mnist import mean_and_spread
from fashion_mnist import run_seeds
from fashion_mnist import save
from fashion_mnist import say
from fashion_mnist import use_keras_home

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

GRID = (0.0, 20.0, 90.0, 179.0)  # 0: no augmentation; 180 is the bound
ESTIMATORS = ("hpo_sgld", "adjoint_sgld", "rmd", "ift_neumann")


def parse(arguments=None):
    parser = make_parser(__doc__)
    parser.add_argument(
        "--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS[:3]
    )
    options = parser.parse_args(arguments)
    options.num_digits = 600
    options.steps, options.batch_size = 800, 50
    options.sizes = (5000, 1000) if options.data != "digits" else (400, 200)
    options.num_test, options.grid = 4000, GRID
    if options.quick:
        options.seeds, options.steps, options.batch_size = 1, 20, 10
        options.sizes, options.num_test = (100, 50), 200
        options.grid = GRID[::2]
    return options


if __name__ == "__main__":
    use_keras_home(parse())  # before Keras is imported

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_hposgld as hs  # noqa: E402

# Settings were chosen on seed 10, which is not among the documented ones.
TRUE_RANGE = 90.0  # degrees, of outer and test images in variant A
START = 20.0
LEARNING_RATE = 0.1  # at the start of a cosine decay to zero
TEMPERATURE = 1e-8
CHAIN = 5  # inner steps in an outer iteration
HYPER_LEARNING_RATE = 0.1
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LEARNED = {
    "hpo_sgld": (
        "HPO-SGLD",
        lambda: hs.estimators.HPOSGLD(burn_in=0, num_samples=CHAIN),
    ),
    "adjoint_sgld": (
        "AdjointSGLD",
        lambda: hs.estimators.AdjointSGLD(
            burn_in=0, num_samples=CHAIN, warm_start=False
        ),
    ),
    "rmd": ("RMD", lambda: hs.estimators.RMD(num_steps=CHAIN)),
    "ift_neumann": (
        "IFT-Neumann",
        lambda: hs.estimators.IFTNeumann(
            num_terms=10, step_size=LEARNING_RATE, num_steps=CHAIN
        ),
    ),
}
VARIANTS = {
    "A": "outer and test images rotated by up to 90 degrees",
    "B": "outer and test images upright",
}
BEST = "best range of the grid"
BEST_ON_ALL = "best range, trained on all"
NONE_ON_ALL = "range 0, trained on all"
RETRAINED = "  the same, retrained on all"
AVERAGED = "  the same, predictions averaged"
FILE_NAME = "learn_invariance"


def rotated(data, seed):
    """Images each turned once, by Keras's layer and not by the learned one."""
    turn = keras.layers.RandomRotation(
        TRUE_RANGE / 360, fill_mode="constant", seed=seed
    )
    x, y = data
    parts = [turn(x[i : i + 500], training=True) for i in range(0, len(x), 500)]
    return np.concatenate(parts), y


def together(first, second):
    return tuple(np.concatenate(p) for p in zip(first, second, strict=True))


def make_network(image_shape, degrees, seed=0):
    """A small CNN, behind random rotations unless `degrees` is zero."""
    augmentation = (
        [hs.layers.LearnableAffine(rotation=degrees, seed=seed)]
        if degrees
        else []
    )
    convolution = {"strides": 2, "padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input(image_shape),
            *augmentation,
            keras.layers.Conv2D(16, 3, **convolution),
            keras.layers.Conv2D(32, 3, **convolution),
            keras.layers.Flatten(),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(10),
        ]
    )


def score(data, predict):
    """Accuracy and cross-entropy; `predict` returns logits."""
    x, y = data
    parts = [predict(x[i : i + 1000]) for i in range(0, len(x), 1000)]
    logits = np.concatenate(parts)
    return np.mean(logits.argmax(axis=1) == y), float(LOSS(y, logits))


class Experiment:
    """All trainings of one seed: same first weights, steps and batch size.

    Attributes:
        rows: By variant, `{name: (range, accuracy, cross-entropy, seconds)}`.
        courses: By variant and estimator, the range after each chain.
    """

    def __init__(self, options, pool, test, seed, say):
        self.options, self.seed, self.say = options, seed, say
        order = np.random.default_rng(seed).permutation(len(pool[0]))
        ends = np.cumsum([0, *options.sizes])
        self.inner, outer = (
            tuple(part[order[begin:end]] for part in pool)
            for begin, end in zip(ends[:-1], ends[1:], strict=True)
        )
        test = tuple(part[: options.num_test] for part in test)
        self.outer = {"A": rotated(outer, seed), "B": outer}
        self.test = {"A": rotated(test, 1000 + seed), "B": test}
        self.rows = {variant: {} for variant in VARIANTS}
        self.courses = {variant: {} for variant in VARIANTS}
        keras.utils.set_random_seed(seed)
        network = self.network(0.0)
        self.first_weights = [v.numpy() for v in network.trainable_variables]

    def network(self, degrees):
        return make_network(self.inner[0].shape[1:], degrees, self.seed)

    def start(self, degrees):
        """A network with the first weights, and the sampler."""
        network = self.network(degrees)
        for variable, value in zip(
            network.trainable_variables, self.first_weights, strict=True
        ):
            variable.assign(value)
        decay = keras.optimizers.schedules.CosineDecay(
            LEARNING_RATE, self.options.steps
        )
        return network, hs.SGLD(decay, TEMPERATURE, seed=self.seed)

    def train(self, data, degrees):
        """Trains under a fixed range; returns the network and the time."""
        network, sampler = self.start(degrees)
        begin = time.process_time()
        batches = tf.data.Dataset.from_tensor_slices(data)
        batches = batches.shuffle(len(data[0]), seed=self.seed).repeat()
        network.compile(
            sampler, loss=LOSS, jit_compile=False, steps_per_execution=CHAIN
        )
        network.fit(
            batches.batch(self.options.batch_size),
            steps_per_epoch=self.options.steps,
            verbose=0,
        )
        return network, time.process_time() - begin

    def learn(self, variant, estimator):
        """Learns the range; returns the network, the time and the course."""
        network, sampler = self.start(START)
        (augmentation,) = hs.find_hyperparameters(network)
        learner = hs.BilevelModel(network, seed=self.seed)
        learner.compile(
            optimizer=sampler,
            loss=LOSS,
            hypergradient=LEARNED[estimator][1](),
            hyper_optimizer=keras.optimizers.Adam(HYPER_LEARNING_RATE),
        )
        course = [START]
        follow = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs=None: course.append(
                degrees_of(augmentation)
            )
        )
        begin = time.process_time()
        learner.fit(
            *self.inner,
            outer_data=self.outer[variant],
            batch_size=self.options.batch_size,
            steps_per_epoch=self.options.steps,
            callbacks=[follow],
            verbose=0,
        )
        return network, time.process_time() - begin, course

    def add_row(self, variant, name, degrees, network, seconds, predict=None):
        predict = predict or (lambda x: network(x, training=False))
        accuracy, loss = score(self.test[variant], predict)
        self.rows[variant][name] = (degrees, accuracy, loss, seconds)
        self.say(
            f"  {variant}, {name.strip()}: {degrees:.0f} degrees, accuracy "
            f"{accuracy:.3f}, cross-entropy {loss:.3f}, {seconds:.0f} s"
        )

    def run_fixed(self):
        """A row for each range of the grid; what a search makes of them."""
        trained = {}
        for degrees in self.options.grid:
            trained[degrees] = self.train(self.inner, degrees)
            for variant in VARIANTS:
                name = f"range {degrees:.0f}"
                self.add_row(variant, name, degrees, *trained[degrees])
        search = sum(seconds for _, seconds in trained.values())
        for variant, outer in self.outer.items():
            losses = [
                score(outer, lambda x, n=network: n(x, training=False))[1]
                for network, _ in trained.values()
            ]
            best = list(trained)[int(np.argmin(losses))]
            self.add_row(variant, BEST, best, trained[best][0], search)
            everything = together(self.inner, outer)
            network, seconds = self.train(everything, 0.0)
            self.add_row(variant, NONE_ON_ALL, 0.0, network, seconds)
            if best:
                network, seconds = self.train(everything, best)
            self.add_row(variant, BEST_ON_ALL, best, network, search + seconds)

    def run_learned(self, variant, estimator):
        """Rows of one estimator; the paper's is retrained on all, too."""
        name = LEARNED[estimator][0]
        network, seconds, course = self.learn(variant, estimator)
        degrees = course[-1]
        self.courses[variant][estimator] = course
        self.add_row(variant, name, degrees, network, seconds)
        if estimator != "hpo_sgld":
            return
        classifier = keras.Sequential([network, keras.layers.Softmax()])
        self.add_row(
            variant,
            AVERAGED,
            degrees,
            network,
            seconds,
            lambda x: np.log(hs.layers.average_predictions(classifier, x)),
        )
        everything = together(self.inner, self.outer[variant])
        network, more = self.train(everything, degrees)
        self.add_row(variant, RETRAINED, degrees, network, seconds + more)

    def run(self):
        self.run_fixed()
        for variant in VARIANTS:
            for estimator in self.options.estimators:
                self.run_learned(variant, estimator)
        return self


def degrees_of(augmentation):
    """The range that a layer has now."""
    (value,) = augmentation.hyperparameter_values().values()
    return float(value)


def format_table(experiments):
    """Mean and standard deviation over the seeds, a row a method."""
    lines = []
    for variant, meaning in VARIANTS.items():
        lines += [
            f"{variant}: {meaning}",
            f"{'':32s} {'range':>12s} {'test accuracy':>15s} "
            f"{'cross-entropy':>15s} {'time':>6s}",
            "-" * 84,
        ]
        for name in experiments[0].rows[variant]:
            mean, spread = mean_and_spread(
                [run.rows[variant][name] for run in experiments]
            )
            lines.append(
                f"{name:32s} {mean[0]:5.1f} +- {spread[0]:3.1f} "
                f"{mean[1]:6.3f} +- {spread[1]:.3f} "
                f"{mean[2]:6.3f} +- {spread[2]:.3f} {mean[3]:4.0f} s"
            )
        lines.append("")
    return "\n".join(lines[:-1])


def save_picture(experiments, estimators, path):
    """Saves the courses of the range, and images under the learned ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(11, 6.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[2, 1])
    all_axes = top.subplots(1, 2, sharey=True)
    for axes, (variant, meaning) in zip(
        all_axes, VARIANTS.items(), strict=True
    ):
        for number, estimator in enumerate(estimators):
            for run in experiments:
                label = LEARNED[estimator][0] if run is experiments[0] else None
                axes.plot(
                    run.courses[variant][estimator],
                    color=f"C{number}",
                    label=label,
                    alpha=0.8,
                    linewidth=1.2,
                )
        if variant == "A":
            axes.axhline(TRUE_RANGE, color="black", linestyle=":")
            axes.set(ylabel="learned range in degrees")
        axes.set(xlabel="outer iteration", title=f"{variant}: {meaning}")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)

    grid = bottom.subplots(2, 8)
    run = experiments[0]
    for line, variant in zip(grid, VARIANTS, strict=True):
        degrees = run.courses[variant][estimators[0]][-1]
        turn = hs.layers.LearnableAffine(rotation=degrees, seed=0)
        images = turn(run.inner[0][:8], training=True)
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image[..., 0], cmap="gray_r")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(f"{variant}: {degrees:.0f}°")
    name = LEARNED[estimators[0]][0]
    bottom.suptitle(f"training images within the range that {name} learned")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments=None):
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    pool, test = load_images(options)

    say(__doc__.split("\n\n")[1])
    experiments = run_seeds(
        options,
        lambda seed: Experiment(options, pool, test, seed, say).run(),
    )

    table = format_table(experiments)
    save(
        options,
        FILE_NAME,
        table,
        lambda path: save_picture(experiments, options.estimators, path),
    )
    return experiments


if __name__ == "__main__":
    main()
