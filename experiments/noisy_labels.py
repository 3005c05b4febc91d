"""What a noise model of the labels gains, with and without right labels.

    python experiments/noisy_labels.py --out rows.csv
        [--data FOLDER --features FOLDER] [--sets digits,wine] [--seeds 3]

Protocol, fixed before the run. Settings were looked at on digits with seed 0
alone; the seeds of the rows begin with 1.

* `digits`, `breast_cancer`, `wine` of scikit-learn: half of the examples are
  for training, half for the test, by seed. Of the training labels 30 % are
  flipped to another class at random. The network has one hidden layer of 50
  tanh units. There are no right labels.
* `cifar10n`: the human labels "worse" of 8000 images, on standardized features
  of a frozen EfficientNet-Lite0; the next 1000 images have right labels.
* `trec_weak`: majority labels of 68 labelling functions on 5033 questions, on
  standardized features of a frozen MiniLM (without `--features`: TF-IDF and 200
  singular vectors); the 500 of its validation part have right labels. On both
  sets the model is linear.

Evidence: `SGLD("auto")`, 2000 steps, all else at its default. Adam: 1e-3 for
60 epochs in batches of 64 (20 epochs on the large sets). Methods:

    plain, rate, matrix    evidence, with cross-entropy or the noise model
    adam                   Adam, cross-entropy
    gce                    Adam, generalized cross-entropy, q = 0.7 (Zhang and
                           Sabuncu, NeurIPS 2018)
    forward                Adam, the noise model held at the true T (an oracle)
    truth                  Adam, cross-entropy on the true labels (an oracle)
    cleanlab               CleanLearning around logistic regression, where
                           cleanlab is installed
    right                  Adam on the right labels alone
    both                   Adam on noisy and right labels together
    matrix_outer           Adam, T learned on the right labels by the callback,
                           a chain apart every 20 batches, Adam(0.1) for T

A row has the accuracy on right test labels; the share of the labels that is
flipped, and the one found; the AUC of telling wrong training labels from right
ones, by 1 - p[label]; and the seconds of processor time. Rows that are there
are not computed again. At the end all are printed, and their means.
"""

import argparse
import csv
import os
import pathlib
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn import datasets  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402

import keras_hposgld as hs  # noqa: E402

FIELDS = "set seed method accuracy flipped found auc seconds".split()
SMALL = ("digits", "breast_cancer", "wine")
LARGE = ("cifar10n", "trec_weak")
FLIPPED = 0.3
STEPS = 2000
NUM_INNER = 8000  # of CIFAR-10N
PLAIN = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Task:
    """Noisy training labels, and right ones to judge by.

    Attributes:
        train: Inputs, noisy labels and true ones.
        outer: Inputs and right labels, or `None`.
        test: Likewise.
        hidden: Tuple: the units of the hidden layers.
        epochs: Integer, for Adam.
    """

    def __init__(self, train, outer, test, hidden, epochs):
        mean, deviation = train[0].mean(0), train[0].std(0) + 1e-6
        self.train, self.outer, self.test = (
            part and (scaled(part[0], mean, deviation), *part[1:])
            for part in (train, outer, test)
        )
        self.hidden, self.epochs = hidden, epochs
        self.num_classes = int(max(self.train[2].max(), self.test[1].max())) + 1


def scaled(x, mean, deviation):
    return ((x - mean) / deviation).clip(-5, 5).astype("float32")


def small_task(name, seed):
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.5, random_state=seed, stratify=y
    )
    rng, number = np.random.default_rng(seed), y.max() + 1
    other = (y + rng.integers(1, number, len(y))) % number
    noisy = np.where(rng.uniform(size=len(y)) < FLIPPED, other, y)
    return Task((x, noisy, y), None, (x_test, y_test), (50,), 60)


def large_task(name, data, features):
    raw = np.load(data / f"{name}.npz", allow_pickle=True)
    if name == "cifar10n":
        x = np.load(features / "cifar10n_effnet.npz")
        inner, outer = slice(NUM_INNER), slice(NUM_INNER, NUM_INNER + 1000)
        train = x["train"][inner], raw["worse"][inner], raw["clean"][inner]
        right = x["train"][outer], raw["clean"][outer]
        test = x["test"], raw["test_y"]
    else:
        parts = ("train", "valid", "test")
        x = trec_features(raw, parts, features)
        labels = {part: raw[f"{part}_label"] for part in parts}
        train = x["train"], raw["hard_labels"], labels["train"]
        right, test = ((x[part], labels[part]) for part in parts[1:])
    return Task(train, right, test, (), 20)


def trec_features(raw, parts, features):
    if features:
        return np.load(features / "trec_minilm.npz")
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = [words.fit_transform(raw["train_text"])]
    x += [words.transform(raw[f"{part}_text"]) for part in parts[1:]]
    svd = TruncatedSVD(200, random_state=0).fit(x[0])
    return dict(zip(parts, map(svd.transform, x), strict=True))


# Methods: functions of a task and a seed, which return a function from inputs
# to probabilities, and the share of flipped labels that was found.


def network(task):
    return keras.Sequential(
        [
            keras.Input(task.train[0].shape[1:]),
            *(keras.layers.Dense(units, "tanh") for units in task.hidden),
            keras.layers.Dense(task.num_classes),
        ]
    )


def predictor(model):
    return lambda x: np.asarray(
        keras.ops.softmax(model.predict(x, batch_size=1000, verbose=0))
    )


def noise_model(task, noise, *first):
    return hs.losses.NoisyLabelCrossentropy(
        task.num_classes, noise, *first, from_logits=True
    )


def found_by(loss, probabilities):
    """The share of flipped labels, over the classes that are predicted."""
    kept = np.diag(loss.noise_matrix())
    return float(1 - probabilities.mean(0) @ kept)


def evidence(noise):
    def run(task, seed):
        loss = noise_model(task, noise) if noise else PLAIN
        learner = hs.BilevelModel(network(task), seed=seed)
        learner.compile(
            hs.SGLD("auto", seed=seed),
            loss,
            hypergradient="evidence",
            steps_per_execution=100,
        )
        learner.fit(*task.train[:2], steps_per_epoch=STEPS, verbose=0)
        predict = predictor(learner)
        if not noise:
            return predict, None
        return predict, found_by(loss, predict(task.train[0]))

    return run


def adam(make_loss, choose=lambda task: task.train[:2]):
    def run(task, seed):
        model, loss = network(task), make_loss(task)
        model.compile(keras.optimizers.Adam(1e-3), loss)
        x, y = choose(task)
        model.fit(x, y, batch_size=64, epochs=task.epochs, verbose=0)
        return predictor(model), None

    return run


def true_matrix(task):
    """T of the training labels, a thousandth of it spread evenly."""
    counts = np.zeros((task.num_classes, task.num_classes))
    np.add.at(counts, (task.train[2], task.train[1]), 1)
    matrix = counts / counts.sum(1, keepdims=True)
    return 0.999 * matrix + 0.001 / task.num_classes


def forward(task):
    loss = noise_model(task, "matrix")
    loss.variable.assign(np.log(true_matrix(task)))  # also where it is weak
    return loss


def generalized(task, q=0.7):
    def loss(y_true, y_pred):
        p = keras.ops.softmax(y_pred)
        one_hot = keras.ops.one_hot(
            keras.ops.reshape(y_true, (-1,)), task.num_classes
        )
        return (1 - keras.ops.sum(one_hot * p, -1) ** q) / q

    return loss


def matrix_outer(task, seed):
    model, loss = network(task), noise_model(task, "matrix")
    model.compile(keras.optimizers.Adam(1e-3), loss)
    callback = hs.callbacks.LearnHyperparameters(
        task.outer,
        chain="apart",
        every=20,
        hyper_optimizer=keras.optimizers.Adam(0.1),
        batch_size=64,
        outer_loss=PLAIN,
        seed=seed,
    )
    model.fit(
        *task.train[:2],
        batch_size=64,
        epochs=task.epochs,
        callbacks=[callback],
        verbose=0,
    )
    predict = predictor(model)
    return predict, found_by(loss, predict(task.train[0]))


def cleanlab(task, seed):
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    strength = 1.0 if task.hidden else 1e-2
    inner = LogisticRegression(C=strength, max_iter=300)
    model = CleanLearning(inner, seed=seed).fit(*task.train[:2])
    return model.predict_proba, None


def joined(task):
    (x, y, _), (x_outer, y_outer) = task.train, task.outer
    return np.concatenate([x, x_outer]), np.concatenate([y, y_outer])


METHODS = {
    "plain": evidence(None),
    "rate": evidence("rate"),
    "matrix": evidence("matrix"),
    "adam": adam(lambda task: PLAIN),
    "gce": adam(generalized),
    "forward": adam(forward),
    "truth": adam(lambda task: PLAIN, lambda task: task.train[::2]),
    "cleanlab": cleanlab,
}
OUTER = {
    "right": adam(lambda task: PLAIN, lambda task: task.outer),
    "both": adam(lambda task: PLAIN, joined),
    "matrix_outer": matrix_outer,
}


def compute(task, method, seed):
    """The measured part of a row."""
    keras.utils.set_random_seed(seed)
    start = time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        predict, found = method(task, seed)
    seconds = time.process_time() - start
    for message in {str(w.message) for w in said if w.category is UserWarning}:
        print("   warned:", message)
    x, noisy, true = task.train
    doubt = 1 - predict(x)[np.arange(len(x)), noisy]
    right = predict(task.test[0]).argmax(1) == task.test[1]
    return {
        "accuracy": right.mean(),
        "flipped": np.mean(noisy != true),
        "found": np.nan if found is None else found,
        "auc": roc_auc_score(noisy != true, doubt),
        "seconds": seconds,
    }


def read(path):
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def add(path, row):
    is_new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def show(rows):
    for row in rows:
        print(*(row[field] for field in FIELDS))
    keys = dict.fromkeys((row["set"], row["method"]) for row in rows)
    print(
        "\nmeans: set, method, seeds, accuracy, found - flipped, auc, seconds"
    )
    for key in keys:
        own = [row for row in rows if (row["set"], row["method"]) == key]
        numbers = np.array([[float(r[f]) for f in FIELDS[3:]] for r in own])
        accuracy, flipped, found, auc, seconds = numbers.mean(0)
        print(
            f"{key[0]:14s} {key[1]:13s} {len(own)} {accuracy:.3f} "
            f"{found - flipped:+.3f} {auc:.3f} {seconds:.0f}"
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--features", type=pathlib.Path)
    parser.add_argument("--sets", default=",".join([*SMALL, *LARGE]))
    parser.add_argument("--methods", default=",".join([*METHODS, *OUTER]))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    done = {(r["set"], r["seed"], r["method"]) for r in read(options.out)}
    for name in options.sets.split(","):
        needs = options.data and (options.features or name == "trec_weak")
        if name in LARGE and not needs:
            print(f"{name}: left out, it needs --data and --features")
            continue
        for seed in range(1, options.seeds + 1):
            is_small = name in SMALL
            task = (
                small_task(name, seed)
                if is_small
                else large_task(name, options.data, options.features)
            )
            methods = METHODS if is_small else METHODS | OUTER
            for method in options.methods.split(","):
                key = (name, str(seed), method)
                if method not in methods or key in done:
                    continue
                try:
                    row = compute(task, methods[method], seed)
                except ImportError as error:
                    print(f"{method}: left out, {error}")
                    continue
                row = dict(zip(FIELDS, key, strict=False)) | {
                    name: f"{value:.4g}" for name, value in row.items()
                }
                add(options.out, row)
                print(*row.values(), flush=True)
                keras.backend.clear_session()
    show(read(options.out))


if __name__ == "__main__":
    main()
