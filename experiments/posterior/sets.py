"""Data sets of `experiments/evidence.py`: regressions and classes.

A split is a training part and a test part. The UCI sets have standard splits.
All others are divided at random by the number of the split, classes in equal
shares. Inputs and targets of a regression are in units of the training part.
Inputs that do not vary in it are dropped. Others are cut off at `FARTHEST`
deviations, which columns reach that hardly vary in the training part.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from sklearn import datasets
from sklearn.model_selection import train_test_split

FARTHEST = 10.0
SMALL = 500  # sets below it are tested on a third, the others on a fifth
UCI = ("boston", "concrete", "energy", "kin8nm", "power", "wine", "yacht")
CORN = ("moisture", "oil", "protein", "starch")
MICROARRAYS = ("gravier", "colon", "west", "pomeroy", "khan")
MICROBIOME = ("cirrhosis", "obesity", "T2D")
REGRESSIONS = (
    *("concrete", "energy", "communities", "corn_oil", "tecator"),
    *("boston", "wine", "yacht", "diabetes", "gasoline"),
    *("corn_moisture", "corn_protein", "corn_starch", "kin8nm", "power"),
)
CLASSES = (
    *("madelon", "digits_noise", "gravier", "breast_cancer", "colon", "khan"),
    *("cirrhosis", "obesity", "T2D", "west", "pomeroy"),
    *("mammography", "arcene"),
)
WITHOUT_FOLDER = ("digits_noise", "breast_cancer", "diabetes")
BIG = ("madelon", "kin8nm", "power", "mammography", "arcene")
# The order in which they are run: what tells most comes first.
ALL = (
    *("madelon", "digits_noise", "concrete", "energy", "communities"),
    *("corn_oil", "tecator", "gravier"),
    *("breast_cancer", "diabetes", "boston", "yacht", "wine"),
    *("cirrhosis", "obesity", "T2D", "gasoline"),
    *("corn_moisture", "corn_protein", "corn_starch"),
    *("colon", "khan", "west", "pomeroy"),
    *("kin8nm", "power", "mammography", "arcene"),
)


class Split(NamedTuple):
    """Training and test part; targets are standardized, or class numbers.

    `center + scale * y` are the targets of a regression in their own units.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    task: str  # "regression" or "classes"
    center: float = 0.0
    scale: float = 1.0


def number_of_splits(name):
    """How many splits of a set are run."""
    if name in BIG:
        return 5
    return 20 if name in UCI else 10


def load(name, number, folder=None):
    """A split of a set.

    Args:
        name: One of `ALL`.
        number: Integer, the number of the split.
        folder: Path of the data that no package ships, for those that need it.
    """
    if name not in ALL:
        raise ValueError(f"Unknown set. Received: {name}. Known: {ALL}.")
    folder = folder and pathlib.Path(folder)
    if name in UCI:
        data = np.load(folder / "tabular" / "uci" / f"{name}.npz")
        x, y = data["x"], np.ravel(data["y"])
        parts = data[f"train_{number}"], data[f"test_{number}"]
    else:
        x, y = _arrays(name, number, folder)
        parts = _parts(name, y, number)
    return _standardized(x, y, *parts, _task(name))


def _task(name):
    return "classes" if name in CLASSES else "regression"


def _arrays(name, number, folder):
    """Inputs and targets as the source has them, or as people use them."""
    if name == "digits_noise":
        x, y = datasets.load_digits(return_X_y=True)
        noise = np.random.default_rng(number).normal(size=(len(x), 256))
        return np.hstack([x, noise]), y
    if name == "breast_cancer":
        return datasets.load_breast_cancer(return_X_y=True)
    if name == "diabetes":
        return datasets.load_diabetes(return_X_y=True)
    if name == "communities":
        return _file(folder / "tabular" / "communities.npz")
    if name.startswith("corn_"):
        x, y = _file(folder / "nir" / "corn.npz")
        return x, y[:, CORN.index(name.removeprefix("corn_"))]
    if name == "tecator":
        x, y = _file(folder / "nir" / "tecator.npz")
        return x, y[:, 1]  # fat
    if name == "gasoline":
        x, y = _file(folder / "nir" / "gasoline.npz")
        return x, np.ravel(y)
    if name in MICROBIOME:
        data = np.load(folder / "microbiome.npz")
        return np.log10(data[f"{name}_x"] + 1e-4), data[f"{name}_y"]
    if name in MICROARRAYS:
        x, y = _file(folder / "microarrays" / f"{name}.npz")
        return (np.log2(x.clip(20, 16000)) if name == "colon" else x), y
    return _file(folder / f"{name}.npz")  # madelon, mammography, arcene


def _file(path):
    data = np.load(path)
    return data["x"], data["y"]


def _parts(name, y, number):
    """Places of the training and of the test examples."""
    sizes = {"test_size": 1 / 3 if len(y) < SMALL else 0.2}
    if name == "madelon":
        sizes = {"test_size": 0.3}
    elif name == "digits_noise":
        sizes = {"train_size": 300, "test_size": 1197}
    return train_test_split(
        np.arange(len(y)),
        stratify=y if name in CLASSES else None,
        random_state=number,
        **sizes,
    )


def _standardized(x, y, train, test, task):
    x = np.asarray(x, float)
    mean, spread = x[train].mean(axis=0), x[train].std(axis=0)
    # Rounding of float32 is no spread.
    varies = spread > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    x = (x - mean)[:, varies] / spread[varies]
    x = x.clip(-FARTHEST, FARTHEST).astype("float32")
    if task == "classes":
        y = np.asarray(y, int)
        return Split(x[train], y[train], x[test], y[test], task)
    y = np.asarray(y, float)
    center, scale = y[train].mean(), y[train].std()
    y = (y - center) / scale
    return Split(
        x[train], y[train], x[test], y[test], task, float(center), float(scale)
    )
