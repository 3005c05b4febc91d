"""Training examples with noisy labels, and right labels to judge by."""

import numpy as np
from sklearn import datasets
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split

SMALL = ("digits", "breast_cancer", "wine")
LARGE = ("cifar10n", "trec_weak")
FLIPPED = 0.3
NUM_INNER = 8000  # of CIFAR-10N


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
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x = [words.fit_transform(raw["train_text"])]
    x += [words.transform(raw[f"{part}_text"]) for part in parts[1:]]
    svd = TruncatedSVD(200, random_state=0).fit(x[0])
    return dict(zip(parts, map(svd.transform, x), strict=True))
