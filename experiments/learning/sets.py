"""Data sets on which the defaults of the callback were chosen and confirmed.

Each is divided at random, by a seed, into training, outer and test examples.
Inputs are standardized by the training examples, targets of a regression too.
"""

import pathlib
from typing import NamedTuple

import keras
import numpy as np
from sklearn import datasets

NUM_TEST = 3000  # at most


class Split(NamedTuple):
    """Training, outer and test examples, each `(x, y)`; the classes, or 0."""

    inner: tuple
    outer: tuple
    test: tuple
    num_classes: int

    @property
    def everything(self):
        """Training and outer examples together."""
        return tuple(
            np.concatenate(parts)
            for parts in zip(self.inner, self.outer, strict=True)
        )


def digits(seed, folder):
    return *_bunch(datasets.load_digits()), 200, 100


def digits_and_noise(seed, folder):
    x, y = _bunch(datasets.load_digits())
    noise = np.random.default_rng(seed).normal(size=(len(x), 256))
    return np.hstack([x, noise]), y, 300, 300


def breast_cancer(seed, folder):
    return *_bunch(datasets.load_breast_cancer()), 228, 114


def wine(seed, folder):
    return *_bunch(datasets.load_wine()), 80, 40


def diabetes(seed, folder):
    return *_bunch(datasets.load_diabetes()), 177, 88


def friedman(seed, folder):
    x, y = datasets.make_friedman1(3300, 60, noise=1.0, random_state=seed)
    return x, y, 200, 100


def fashion_mnist(seed, folder):
    (x, y), _ = keras.datasets.fashion_mnist.load_data()
    return x[:6000].reshape(6000, -1), y[:6000].astype(int), 2000, 1000


def communities(seed, folder):
    data = np.load(folder / "tabular" / "communities.npz")
    return data["x"], data["y"], 300, 100


def concrete(seed, folder):
    data = np.load(folder / "tabular" / "uci" / "concrete.npz")
    return data["x"], np.ravel(data["y"]), 300, 150


def trec(seed, folder):
    from sklearn.feature_extraction.text import TfidfVectorizer

    data = np.load(folder / "trec_weak.npz")
    words = TfidfVectorizer(min_df=5, max_features=600)
    x = words.fit_transform(data["train_text"]).toarray()
    return x, data["train_label"].astype(int), 600, 300


CHOOSING = (digits, diabetes, friedman, communities)
CONFIRMING = (
    breast_cancer,
    wine,
    fashion_mnist,
    trec,
    concrete,
    digits_and_noise,
)
NEED_FOLDER = (communities, concrete, trec)


def _bunch(bunch):
    return bunch.data, bunch.target


def load(name, seed, folder=None):
    """A data set, divided by a seed.

    Args:
        name: One of the functions above.
        seed: Integer.
        folder: Path of the data that no package ships, for those that need it.
    """
    x, y, num_inner, num_outer = name(seed, folder and pathlib.Path(folder))
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = np.asarray(x, "float32")[order], np.asarray(y)[order]
    mean, spread = x[:num_inner].mean(axis=0), x[:num_inner].std(axis=0)
    x = (x - mean) / np.where(spread > 0, spread, 1.0)
    x = x.clip(-5.0, 5.0)  # columns that hardly vary among training examples
    num_classes = int(y.max()) + 1 if y.dtype.kind in "iu" else 0
    if not num_classes:
        y = (y - y[:num_inner].mean()) / y[:num_inner].std()
        y = y.astype("float32").reshape(-1, 1)
    num_known = num_inner + num_outer
    parts = [
        (x[part], y[part])
        for part in (
            slice(num_inner),
            slice(num_inner, num_known),
            slice(num_known, num_known + NUM_TEST),
        )
    ]
    return Split(*parts, num_classes)
