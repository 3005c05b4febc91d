"""Learns initial weights for few-shot classification of handwritten characters.

From each of five characters that it has never seen, a network gets one example
(or five) and takes a few steps; then it has to tell apart other examples of the
five. The initial weights are the hyperparameters: HPO-SGLD learns them on tasks
made of the background alphabets of Omniglot, beside MAML (differentiation
through the steps), first-order MAML and iMAML (implicit differentiation), each
for the same processor time (so that other programs do not matter; a minute on
two cores is up to two of them). All are tested on characters of the evaluation
alphabets.

    python examples/few_shot_omniglot.py [--quick] [--minutes 12]
        [--shots 1 5] [--methods hpo_sgld maml first_order_maml imaml]
        [--omniglot FILE.npz] [--data omniglot|digits] [--output FOLDER]

Omniglot is downloaded once (15 MB). `--omniglot` names a file that holds it
already, as arrays `background_images` and `evaluation_images` of shape
(characters, 20, 28, 28), ink 255 on 0; `--data digits` takes scikit-learn's
digits, which need no download.
"""

import argparse
import os
import pathlib
import time
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import keras_hposgld as hs  # noqa: E402

ARCHIVES = "https://github.com/brendenlake/omniglot/raw/master/python/"
SIZE = 28
WAYS = 5
TEST_QUERIES = 15  # of each class
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FILE_NAME = "few_shot_omniglot"


def methods():
    """Estimators and what else a method compiles with in its own way."""
    estimators = hs.estimators
    return {
        "hpo_sgld": (
            "HPO-SGLD",
            estimators.HPOSGLD(0, 1, curvature="telescoped"),
            {},
        ),
        "maml": ("MAML (RMD)", estimators.RMD(num_steps=1), {}),
        "first_order_maml": (
            "first-order MAML",
            estimators.FirstOrder(num_steps=1),
            {},
        ),
        # Its Hessians are far from positive: with less damping, or at the
        # learning rates of the others, it unlearns.
        "imaml": (
            "iMAML (IFT-CG)",
            estimators.IFTCG(max_iterations=3, damping=50.0, num_steps=5),
            {
                "proximal": 2.0,
                "adaptation_steps": 3,
                "optimizer": hs.SGLD(0.2),
                "hyper_optimizer": keras.optimizers.Adam(2e-3),
            },
        ),
    }


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps")
    parser.add_argument("--minutes", type=float, help="of processor time")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 5])
    parser.add_argument(
        "--methods", nargs="+", choices=list(methods()), default=list(methods())
    )
    parser.add_argument(
        "--data", choices=["omniglot", "digits"], default="omniglot"
    )
    parser.add_argument("--omniglot", type=pathlib.Path, help="file with it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--filters", type=int, default=64)
    parser.add_argument("--meta-batch-size", type=int, default=4)
    parser.add_argument("--queries", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.4)
    parser.add_argument("--hyper-learning-rate", type=float, default=5e-3)
    parser.add_argument(
        "--adaptation-steps",
        type=int,
        help="when tested; by default 3 with one shot and 1 with more, as more "
        "steps than it learned with helped with one shot and hurt with five",
    )
    parser.add_argument("--test-episodes", type=int, default=1000)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
    )
    options = parser.parse_args(arguments)
    options.minutes = options.minutes or (0.01 if options.quick else 12.0)
    if options.quick:
        options.filters, options.meta_batch_size = 4, 2
        options.test_episodes, options.shots = 20, [1]
    return options


def download_omniglot():
    """Images of both parts of Omniglot, from where its authors keep it."""
    from PIL import Image

    parts = []
    for name in ("images_background", "images_evaluation"):
        try:
            path = keras.utils.get_file(f"{name}.zip", f"{ARCHIVES}{name}.zip")
        except Exception as error:
            raise SystemExit(
                f"Omniglot could not be loaded: {error}\nIt is downloaded "
                "once, so this needs a network. Without one, pass "
                "`--omniglot FILE.npz` with the arrays `background_images` "
                "and `evaluation_images`, or `--data digits`."
            ) from error
        characters = {}
        with zipfile.ZipFile(path) as archive:
            for entry in sorted(archive.namelist()):
                if entry.endswith(".png"):
                    with archive.open(entry) as file:
                        image = Image.open(file).convert("L")
                        image = image.resize((SIZE, SIZE), Image.BILINEAR)
                    character = entry.rsplit("/", 1)[0]
                    ink = 255 - np.asarray(image)
                    characters.setdefault(character, []).append(ink)
        parts.append(np.array(list(characters.values())))
    return parts


def load_characters(options):
    """Images `(classes, examples, height, width)` to train and test on."""
    if options.data == "digits":
        digits = load_digits()
        order = np.argsort(digits.target, kind="stable")
        number = np.bincount(digits.target).min()
        images = np.stack(
            [
                digits.images[order][digits.target[order] == digit][:number]
                for digit in range(10)
            ]
        )
        images = (images * (255 / 16)).astype("uint8")
        return images[:5], images[5:]
    if options.omniglot:
        with np.load(options.omniglot) as arrays:
            return arrays["background_images"], arrays["evaluation_images"]
    return download_omniglot()


def with_rotations(characters):
    """Each character turned by 0, 90, 180 and 270 degrees: four characters."""
    return np.concatenate(
        [np.rot90(characters, turns, axes=(2, 3)) for turns in range(4)]
    )


def make_tasks(characters, shots, queries, **arguments):
    number, examples, height, width = characters.shape
    return hs.data.episodes(
        characters.reshape(-1, height, width, 1),
        np.repeat(np.arange(number), examples),
        ways=WAYS,
        shots=shots,
        queries=queries,
        **arguments,
    )


@keras.saving.register_keras_serializable(package="few_shot_omniglot")
class TaskNormalization(keras.layers.Layer):
    """Normalizes channels by the statistics of the images that it sees.

    So does batch normalization in training. Here it is the same in inference,
    as the queries of a task are looked at together, and nothing is kept.
    """

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")
        self.offset = self.add_weight(shape=shape[-1:], initializer="zeros")

    def call(self, x):
        x -= keras.ops.mean(x, axis=(0, 1, 2))
        variance = keras.ops.mean(x * x, axis=(0, 1, 2))
        return x * (self.scale * keras.ops.rsqrt(variance + 1e-3)) + self.offset


def make_network(image_shape, filters):
    """Four strided convolutions, nearly as in the paper of MAML.

    The first, whose images are the largest, has half of the filters: that
    takes half of the time.
    """
    inputs = keras.Input(image_shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for width in (filters // 2, filters, filters, filters):
        x = keras.layers.Conv2D(
            width, 3, strides=2, padding="same", use_bias=False
        )(x)
        x = keras.layers.Activation("relu")(TaskNormalization()(x))
    head = keras.layers.Dense(WAYS, kernel_initializer="zeros", name="head")
    return keras.Model(inputs, head(keras.layers.Flatten()(x)))


class ZeroHead(keras.callbacks.Callback):
    """Keeps the initial weights of the last layer at zero.

    Which class of a task comes first is arbitrary, so initial weights of the
    last layer are noise (Kao, Chiu and Chen, ICLR 2022).
    """

    def on_train_batch_end(self, batch, logs=None):
        for weight in self.model.model.get_layer("head").trainable_variables:
            weight.assign(keras.ops.zeros_like(weight))


def accuracy_of_tasks(meta, tasks):
    """The accuracy in each task, after adaptation to it."""
    logits = meta.predict(tasks, verbose=0)
    targets = np.concatenate([query[1] for _, query in tasks])
    return np.mean(logits.argmax(-1) == targets, axis=1)


class Course(keras.callbacks.Callback):
    """Tests now and then, and ends training when the time has been spent.

    Until then the learning rate of the initial weights falls to zero.

    Attributes:
        points: List of (seconds of processor time spent on training,
            iterations, test accuracy).
    """

    def __init__(self, meta, tasks, seconds, num_points=12):
        super().__init__()
        self.meta, self.tasks, self.budget = meta, tasks, seconds
        self.points, self.spent, self.num_points = [], 0.0, num_points
        self.iterations = 0
        self.learning_rate = float(meta.hyper_optimizer.learning_rate)

    def on_train_batch_begin(self, batch, logs=None):
        self.begin = time.process_time()

    def on_train_batch_end(self, batch, logs=None):
        if self.iterations:  # the first one compiles
            self.spent += time.process_time() - self.begin
        self.iterations += 1
        left = max(1 - self.spent / self.budget, 0.0)
        self.meta.hyper_optimizer.learning_rate = self.learning_rate * left
        due = self.spent * self.num_points / self.budget > len(self.points)
        if due or self.spent > self.budget:
            accuracy = accuracy_of_tasks(self.meta, self.tasks).mean()
            self.points.append((self.spent, self.iterations, accuracy))
            print(
                f"    {self.spent:5.0f} s, {self.iterations} iterations: "
                f"accuracy {accuracy:.3f}",
                flush=True,
            )
        if self.spent > self.budget:
            self.model.stop_training = True


def run(method, shots, data, options):
    """Trains by one method; returns its course and its test accuracies."""
    train, test = data
    name, estimator, arguments = methods()[method]
    print(f"  {name}, {shots} shot(s)", flush=True)
    keras.utils.set_random_seed(options.seed)
    network = make_network((*train.shape[2:], 1), options.filters)
    meta = hs.MetaModel(network, seed=options.seed)
    defaults = {
        "optimizer": hs.SGLD(options.learning_rate, seed=options.seed),
        "hyper_optimizer": keras.optimizers.Adam(options.hyper_learning_rate),
        "adaptation_steps": options.adaptation_steps
        or (3 if shots == 1 else 1),
    }
    meta.compile(loss=LOSS, hypergradient=estimator, **defaults | arguments)
    meta_batch = options.meta_batch_size
    tasks = make_tasks(
        train,
        shots,
        options.queries,
        meta_batch_size=meta_batch,
        seed=options.seed,
    )

    def test_tasks(number, seed):
        size = min(20, number)
        return make_tasks(
            test,
            shots,
            TEST_QUERIES,
            meta_batch_size=size,
            num_batches=number // size,
            seed=seed,
        )

    course = Course(
        meta, test_tasks(options.test_episodes // 5, 1), 60 * options.minutes
    )
    meta.fit(
        tasks,
        steps_per_epoch=10**9,
        epochs=1,
        callbacks=[ZeroHead(), course],
        verbose=0,
    )
    accuracies = accuracy_of_tasks(meta, test_tasks(options.test_episodes, 2))
    return course.points, accuracies


def format_table(results, options):
    """Accuracy with its 95 % confidence interval over the test episodes."""
    lines = [
        f"{WAYS}-way, {options.minutes:g} processor minutes each, "
        f"{options.test_episodes} test episodes",
        f"{'':20s} {'shots':>5s} {'test accuracy':>17s} {'iterations':>10s}",
        "-" * 56,
    ]
    for (method, shots), (points, accuracies) in results.items():
        interval = 1.96 * accuracies.std(ddof=1) / np.sqrt(len(accuracies))
        lines.append(
            f"{methods()[method][0]:20s} {shots:5d} "
            f"{accuracies.mean():9.4f} +- {interval:.4f} {points[-1][1]:10d}"
        )
    return "\n".join(lines)


def save_picture(results, options, path):
    """Saves the test accuracy against the time spent on training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1,
        len(options.shots),
        figsize=(5 * len(options.shots), 4),
        layout="constrained",
        squeeze=False,
        sharey=True,
    )
    for axes, shots in zip(panels[0], options.shots, strict=True):
        for method in options.methods:
            seconds, _, accuracy = zip(*results[method, shots][0], strict=True)
            axes.plot(
                np.array(seconds) / 60,
                accuracy,
                marker=".",
                label=methods()[method][0],
            )
        axes.set(
            xlabel="processor minutes of training",
            ylabel="accuracy on new characters",
            title=f"{WAYS}-way, {shots} shot{'s' if shots > 1 else ''}",
        )
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments=None):
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    print(__doc__.split("\n\n")[1], flush=True)
    train, test = load_characters(options)
    if options.data == "omniglot":
        train = with_rotations(train)
    results = {
        (method, shots): run(method, shots, (train, test), options)
        for shots in options.shots
        for method in options.methods
    }
    table = format_table(results, options)
    print(f"\n{table}\n")
    (options.output / f"{FILE_NAME}.txt").write_text(table + "\n")
    path = options.output / f"{FILE_NAME}.png"
    save_picture(results, options, path)
    print(f"picture: {path}")
    return results


if __name__ == "__main__":
    main()
