"""Fine-tunes a KerasHub ViT, with a learned L1 strength for each weight.

A vision transformer is pretrained on the classes 0 to 4 and fine-tuned on a
few images of the classes 5 to 9. An L1 penalty pulls every entry of every
kernel to its pretrained value, with a strength of its own: HPO-SGLD learns the
strengths on outer images while the weights train. Beside it, the same sampler
without a penalty, as many steps long, without and with the outer images.

    python examples/finetune_kerashub_vit.py [--quick] [--output FOLDER]
        [--size tiny|base] [--preset NAME] [--data digits|fashion_mnist]

`--preset` fine-tunes pretrained weights of KerasHub. `--size base` is ViT-B/16
with fresh weights, to measure time and memory with.
"""

import argparse
import gzip
import os
import pathlib
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import keras_hub  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import keras_hposgld as hs  # noqa: E402

SIZES = {
    "tiny": {
        "image_shape": (32, 32, 3),
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 64,
        "mlp_dim": 128,
    },
    "base": {
        "image_shape": (224, 224, 3),
        "patch_size": 16,
        "num_layers": 12,
        "num_heads": 12,
        "hidden_dim": 768,
        "mlp_dim": 3072,
    },
}
NUM_CLASSES = 5  # in either half
NUM_PRETRAIN = 2000  # at most
LEARNING_RATE = 0.03
TEMPERATURE = 1e-8
START = 1e-3
MAX_STRENGTH = 0.01
INNER_STEPS = {"burn_in": 10, "num_samples": 10}  # of an outer iteration
HYPER_LEARNING_RATE = 0.2
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FILE_NAME = "finetuned_vit.keras"


def load_images(data, keras_home=None):
    """Grey images with values from 0 to 1, and their labels."""
    if data == "digits":
        digits = load_digits()
        return digits.images.astype("float32") / 16, digits.target
    if keras_home is None:
        (x, y), _ = keras.datasets.fashion_mnist.load_data()
    else:
        # Keras reads `KERAS_HOME` when it is imported: too late by now.
        folder = pathlib.Path(keras_home) / "datasets" / "fashion-mnist"
        x, y = (
            np.frombuffer(
                gzip.decompress((folder / name).read_bytes())[header:], np.uint8
            )
            for name, header in (
                ("train-images-idx3-ubyte.gz", 16),
                ("train-labels-idx1-ubyte.gz", 8),
            )
        )
        x = x.reshape(-1, 28, 28)
    return x.astype("float32") / 255, y


def split(x, y, sizes, seed):
    """Pretraining, training, outer and test set.

    Args:
        x: Array of images.
        y: Array of labels, 0 to 9.
        sizes: The numbers of training, outer and test images.
        seed: Integer.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    first, second = (
        order[y[order] < NUM_CLASSES],
        order[y[order] >= NUM_CLASSES],
    )
    if sum(sizes) > len(second):
        raise ValueError(
            "`--num-train`, `--num-outer` and `--num-test` must add up to at "
            f"most {len(second)}, the images of classes 5 to 9. Received: "
            f"sizes={tuple(sizes)}."
        )
    parts = np.split(second, np.cumsum(sizes))[:3]
    return (
        (x[first[:NUM_PRETRAIN]], y[first[:NUM_PRETRAIN]]),
        *((x[part], y[part] - NUM_CLASSES) for part in parts),
    )


def fit_images(data, image_shape):
    """Resizes images to those that a classifier takes: from -1 to 1."""
    x, y = data
    x = keras.ops.image.resize(x[..., np.newaxis], image_shape[:2])
    return np.repeat(2 * keras.ops.convert_to_numpy(x) - 1, 3, axis=-1), y


def make_classifier(size):
    """A classifier with fresh weights, which returns logits."""
    return keras_hub.models.ViTImageClassifier(
        keras_hub.models.ViTBackbone(**SIZES[size]),
        num_classes=NUM_CLASSES,
        preprocessor=None,
    )


def load_preset(preset):
    """A classifier with the pretrained backbone of a KerasHub preset."""
    try:
        return keras_hub.models.ViTImageClassifier.from_preset(
            preset, num_classes=NUM_CLASSES, preprocessor=None
        )
    except Exception as error:
        raise RuntimeError(
            f"The preset could not be loaded. Received: preset={preset!r}. "
            f"KerasHub says: {type(error).__name__}: {error}\n"
            "A name is fetched over the network unless KerasHub has it in its "
            "cache. Where there is no network, save the preset on a machine "
            "that has one, with `classifier.save_to_preset(FOLDER)`, and pass "
            "`--preset FOLDER`. Known names: "
            f"{', '.join(keras_hub.models.ViTImageClassifier.presets)}."
        ) from None


def compile_plain(classifier, optimizer):
    """Without XLA, which Keras would choose and which is slow on CPUs."""
    classifier.compile(
        optimizer, loss=LOSS, metrics=["accuracy"], jit_compile=False
    )


def pretrain(classifier, data, epochs):
    """Plain Keras training, by Adam."""
    compile_plain(classifier, keras.optimizers.Adam(1e-3))
    history = classifier.fit(*data, batch_size=50, epochs=epochs, verbose=0)
    return history.history["accuracy"][-1]


def with_new_head(classifier):
    """The same backbone under a head of zeros: every class as likely."""
    result = keras_hub.models.ViTImageClassifier(
        classifier.backbone, num_classes=NUM_CLASSES, preprocessor=None
    )
    for weight in result.output_dense.weights:
        weight.assign(keras.ops.zeros_like(weight))
    return result


def copy(classifier):
    """A classifier with the same weights."""
    result = type(classifier).from_config(classifier.get_config())
    result.set_weights(classifier.get_weights())
    return result


def score(model, data):
    """Accuracy and cross-entropy, without the penalty."""
    x, y = data
    logits = model.predict(x, batch_size=50, verbose=0)
    return np.mean(logits.argmax(axis=1) == y), float(LOSS(y, logits))


def count(variables):
    """The number of entries of all variables."""
    return sum(int(np.prod(variable.shape)) for variable in variables)


def make_sampler():
    return hs.SGLD(LEARNING_RATE, temperature=TEMPERATURE)


def train_plain(classifier, data, batch_size, outer_iterations):
    """As many steps of the sampler as `train_learned` takes, no penalty."""
    dataset = tf.data.Dataset.from_tensor_slices(data).cache()
    dataset = dataset.shuffle(len(data[0])).repeat().batch(batch_size)
    compile_plain(classifier, make_sampler())
    classifier.fit(
        dataset.prefetch(tf.data.AUTOTUNE),
        steps_per_epoch=outer_iterations * sum(INNER_STEPS.values()),
        verbose=0,
    )
    return classifier


def train_learned(
    classifier, inner, outer, batch_size, outer_iterations, say=None
):
    """HPO-SGLD; the result wraps the classifier."""
    learner = hs.BilevelModel(
        classifier,
        regularizer=hs.regularizers.LearnableL1(
            initial_value=START,
            granularity="parameter",
            center="initial",
            max_value=MAX_STRENGTH,
        ),
    )
    learner.compile(
        optimizer=make_sampler(),
        loss=LOSS,
        metrics=["accuracy"],
        hypergradient=hs.estimators.HPOSGLD(**INNER_STEPS),
        hyper_optimizer=keras.optimizers.Adam(HYPER_LEARNING_RATE),
    )

    def report(epoch, logs):
        if say and (epoch + 1) % 10 == 0:
            say(
                f"    outer iteration {epoch + 1:4d}: loss {logs['loss']:.3f}, "
                f"outer loss {logs['outer_loss']:.3f}"
            )

    learner.fit(
        *inner,
        outer_data=outer,
        batch_size=batch_size,
        epochs=outer_iterations,
        steps_per_epoch=learner.hypergradient.num_steps,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=report)],
        verbose=0,
    )
    return learner


def export_and_check(learner, x, path):
    """Saves a plain model, loads it; the largest difference of its logits."""
    with warnings.catch_warnings():
        # Keras has no penalty that pulls to pretrained weights, and says so
        # for each kernel. Predictions do not need one.
        warnings.filterwarnings("ignore", "The exported layer")
        learner.export().save(path)
    loaded = keras.models.load_model(path, compile=False)
    expected = learner.predict(x, verbose=0)
    return float(np.abs(loaded.predict(x, verbose=0) - expected).max())


def make_start(options, x, y, seed, say):
    """The classifier to fine-tune, and its training, outer and test set."""
    sizes = options.num_train, options.num_outer, options.num_test
    parts = split(x, y, sizes, seed)
    if options.preset:
        classifier = load_preset(options.preset)
    else:
        classifier = make_classifier(options.size)
    image_shape = classifier.backbone.image_shape
    pretraining, *parts = (fit_images(part, image_shape) for part in parts)
    if options.preset:
        say(f"  pretrained weights: {options.preset}")
    elif options.size == "tiny":
        accuracy = pretrain(classifier, pretraining, options.pretrain_epochs)
        say(
            f"  pretrained on {len(pretraining[0])} images of classes 0 to 4: "
            f"training accuracy {accuracy:.3f}"
        )
    else:
        say("  fresh weights: nothing is pretrained at this size")
    return with_new_head(classifier), parts


def run_seed(options, x, y, seed, say):
    """All rows of the table, `{name: (accuracy, loss, time)}`; the learner."""
    keras.utils.set_random_seed(seed)
    start, (inner, outer, test) = make_start(options, x, y, seed, say)
    everything = tuple(
        np.concatenate(pair) for pair in zip(inner, outer, strict=True)
    )
    length = options.batch_size, options.outer_iterations
    rows = {"before fine-tuning": (*score(start, test), 0.0)}

    def row(name, train):
        keras.utils.set_random_seed(seed)
        begin = time.perf_counter()
        model = train(copy(start))
        seconds = time.perf_counter() - begin
        rows[name] = (*score(model, test), seconds)
        say(f"  {name}: test accuracy {rows[name][0]:.3f}, {seconds:.0f} s")
        return model

    row("no penalty", lambda model: train_plain(model, inner, *length))
    row(
        "  the same, trained on all",
        lambda model: train_plain(model, everything, *length),
    )
    learner = row(
        "HPO-SGLD, L1 per parameter",
        lambda model: train_learned(model, inner, outer, *length, say),
    )
    return rows, learner, test[0]


def format_table(runs):
    """Mean and standard deviation over the seeds, a row a method."""
    lines = [
        f"{'':27s} {'test accuracy':>15s} {'cross-entropy':>15s} {'time':>6s}",
        "-" * 66,
    ]
    for name in runs[0]:
        values = np.array([rows[name] for rows in runs])
        mean, spread = values.mean(axis=0), values.std(axis=0)
        lines.append(
            f"{name:27s} {mean[0]:.3f} +- {spread[0]:.3f}  "
            f"{mean[1]:.3f} +- {spread[1]:.3f} {mean[2]:4.0f} s"
        )
    return "\n".join(lines)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short seed")
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--preset", help="a KerasHub ViT: name or folder")
    parser.add_argument(
        "--data", choices=["digits", "fashion_mnist"], default="digits"
    )
    parser.add_argument(
        "--keras-home",
        type=pathlib.Path,
        help="folder with datasets/fashion-mnist",
    )
    parser.add_argument("--num-train", type=int, default=50)
    parser.add_argument("--num-outer", type=int, default=50)
    parser.add_argument("--num-test", type=int, default=700)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--outer-iterations", type=int, default=60)
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.pretrain_epochs = 1, 5
        options.outer_iterations = 5
        options.num_test = min(options.num_test, 300)
    return options


def main(arguments=None):
    options = parse(arguments)
    options.output.mkdir(parents=True, exist_ok=True)

    def say(text):
        print(text, flush=True)

    say(__doc__.split("\n\n")[1])
    x, y = load_images(options.data, options.keras_home)
    runs = []
    for seed in range(options.seeds):
        say(f"\nseed {seed + 1} of {options.seeds}")
        rows, learner, images = run_seed(options, x, y, seed, say)
        runs.append(rows)

    table = format_table(runs)
    strengths = np.concatenate(
        [v.ravel() for v in learner.hyperparameter_values().values()]
    )
    low, middle, high = np.quantile(strengths, [0.1, 0.5, 0.9])
    say(f"\n{table}\n")
    say(
        f"{count(learner.trainable_variables):,} weights, "
        f"{count(learner.hyperparameters):,} hyperparameters; learned "
        f"strengths (10, 50, 90 %): {low:.2g}, {middle:.2g}, {high:.2g}"
    )
    path = options.output / FILE_NAME
    difference = export_and_check(learner, images[:50], path)
    say(f"exported to {path}; loaded again, logits differ by {difference:.1e}")
    (options.output / "finetune_kerashub_vit.txt").write_text(table + "\n")
    return runs, learner, difference


if __name__ == "__main__":
    main()
