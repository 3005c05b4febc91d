"""Sets of data on which a scalar and a strength per input are compared.

A set is a function of a random generator. It returns inputs, targets and the
number of training examples; a split draws anew from a law, or shuffles the
examples that there are. Sets are listed in `SETS`; the first, third, fifth ...
are the half on which details of the rule were chosen, the others confirm it.
"""

import functools

import numpy as np
import sklearn.datasets as sk

NUM_TEST = 2000  # of a set that is a law


def standardized(x, y, num_train):
    """Training and test part, in units of the training part."""
    y = y.reshape(len(y), -1).astype(float)

    def scaled(values):
        mean, spread = values[:num_train].mean(0), values[:num_train].std(0)
        values = (values - mean) / np.where(spread > 1e-12, spread, 1.0)
        return values[:num_train], values[num_train:]

    x = x[:, x[:num_train].std(0) > 1e-12].astype(float)
    (x, x_test), (y, y_test) = scaled(x), scaled(y)
    return x, y, x_test, y_test


def squares_too(x):
    """Inputs, their squares and their products."""
    first, second = np.triu_indices(x.shape[1])
    x = (x - x.mean(0)) / x.std(0)
    return np.concatenate([x, x[:, first] * x[:, second]], axis=1)


# Laws: each split is a new draw.


def linear(rng, num_train, truth, correlation=0.0, r2=0.5, noise=None):
    """Gaussian inputs whose correlation decays with the distance."""
    number, size = num_train + NUM_TEST, len(truth)
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    x = rng.normal(size=(number, size))
    if correlation:
        x = x @ np.linalg.cholesky(correlation**distance).T
    signal = x @ truth
    noise = rng.normal(size=number) if noise is None else noise(number)
    spread = signal.std() or 1.0
    return x, signal + spread * np.sqrt(1 / r2 - 1) * noise, num_train


def equal(rng, num_train, size, **options):
    """All inputs count the same, with random signs."""
    return linear(rng, num_train, rng.choice([-1.0, 1.0], size), **options)


def heavy_tails(rng, num_train, size):
    def noise(number):
        return rng.standard_t(3, size=number) / np.sqrt(3)

    return equal(rng, num_train, size, noise=noise)


def some(rng, num_train, relevant, irrelevant, **options):
    """Relevant inputs of normal coefficients among irrelevant ones."""
    truth = np.zeros(relevant + irrelevant)
    truth[:relevant] = rng.normal(size=relevant)
    return linear(rng, num_train, rng.permutation(truth), **options)


def decaying(rng, num_train, size, **options):
    truth = rng.choice([-1.0, 1.0], size) / np.arange(1, size + 1)
    return linear(rng, num_train, rng.permutation(truth), **options)


def nothing(rng, num_train, size):
    return linear(rng, num_train, np.zeros(size))


def of_sklearn(rng, make, num_train, squares=False, r2=None, **options):
    """A law of scikit-learn; noise is added down to an explained part `r2`."""
    number = num_train + NUM_TEST
    x, y = make(number, random_state=int(rng.integers(2**31)), **options)
    if r2 is not None:
        y = y + y.std() * np.sqrt(1 / r2 - 1) * rng.normal(size=number)
    order = rng.permutation(number)
    return (squares_too(x) if squares else x)[order], y[order], num_train


# Data: each split is a new shuffle.


@functools.cache
def of_package(name):
    data = getattr(sk, f"load_{name}")()
    return data.data, data.target


@functools.cache
def _of_file(path):
    with np.load(path) as data:
        return data["x"].astype(float), data["y"].astype(float)


def shuffled(rng, x, y, num_train):
    order = rng.permutation(len(x))
    return x[order], y[order], num_train


def known(rng, name, num_train, squares=False, against=None, noise=0):
    """Data of scikit-learn; `against` is a class against the others."""
    x, y = of_package(name)
    x = squares_too(x) if squares else x
    y = y if against is None else np.where(y == against, 1.0, -1.0)
    x = np.concatenate([x, x.std() * rng.normal(size=(len(x), noise))], axis=1)
    return shuffled(rng, x, y, num_train)


def filed(rng, path, num_train, squares=False, band=1, target=None):
    """A file; `band` neighboring channels of a spectrum are averaged."""
    x, y = _of_file(path)
    x = squares_too(x) if squares else x
    if band > 1:
        kept = x.shape[1] // band * band
        x = x[:, :kept].reshape(len(x), -1, band).mean(axis=2)
    y = y if target is None else y[:, target]
    return shuffled(rng, x, y, num_train)


def fixed(function, *arguments, **options):
    """A set: the function with all but its generator."""
    return lambda rng: function(rng, *arguments, **options)


SETS = {
    "equal relevance, 20 inputs": fixed(equal, 60, 20),
    "equal relevance, 50 inputs": fixed(equal, 200, 50),
    "equal, correlated inputs": fixed(equal, 100, 30, correlation=0.7),
    "equal, more inputs than examples": fixed(equal, 60, 80),
    "equal, heavy-tailed noise": fixed(heavy_tails, 100, 20),
    "no relevant input": fixed(nothing, 100, 20),
    "10 of 50 relevant": fixed(some, 100, 10, 40),
    "20 of 100 relevant": fixed(some, 200, 20, 80),
    "5 of 30 relevant, correlated": fixed(some, 100, 5, 25, correlation=0.8),
    "30 normal coefficients": fixed(some, 100, 30, 0),
    "decaying relevance": fixed(decaying, 100, 30),
    "decaying, little noise": fixed(decaying, 80, 40, r2=0.9),
    "make_regression, sparse": fixed(
        of_sklearn,
        sk.make_regression,
        80,
        n_features=30,
        n_informative=5,
        r2=0.5,
    ),
    "make_regression, dense": fixed(
        of_sklearn,
        sk.make_regression,
        80,
        n_features=30,
        n_informative=30,
        r2=0.5,
    ),
    "make_regression, low rank": fixed(
        of_sklearn,
        sk.make_regression,
        100,
        n_features=40,
        effective_rank=8,
        r2=0.7,
    ),
    "sparse uncorrelated": fixed(
        of_sklearn, sk.make_sparse_uncorrelated, 80, n_features=20
    ),
    "friedman1": fixed(of_sklearn, sk.make_friedman1, 80, noise=1.0),
    "friedman1, 30 inputs": fixed(
        of_sklearn, sk.make_friedman1, 150, n_features=30, noise=3.0
    ),
    "friedman2, squares": fixed(
        of_sklearn, sk.make_friedman2, 100, squares=True, r2=0.7
    ),
    "friedman3, squares": fixed(
        of_sklearn, sk.make_friedman3, 100, squares=True, noise=0.1
    ),
    "diabetes": fixed(known, "diabetes", 200),
    "diabetes, squares": fixed(known, "diabetes", 250, squares=True),
    "breast cancer": fixed(known, "breast_cancer", 120, against=1),
    "iris, versicolor": fixed(known, "iris", 75, against=1),
    "wines, class 0": fixed(known, "wine", 80, against=0),
    "wines, class 1": fixed(known, "wine", 80, against=1),
    "digits, 3": fixed(known, "digits", 200, against=3),
    "digits, 8": fixed(known, "digits", 400, against=8),
    "digits, 3, and 60 of noise": fixed(
        known, "digits", 300, against=3, noise=60
    ),
}


def sets_of(folder):
    """`SETS`, and those of files in `folder` unless it is `None`."""
    if folder is None:
        return dict(SETS)
    tabular, nir = folder / "tabular", folder / "nir"
    uci = tabular / "uci"
    files = {
        "communities": fixed(filed, tabular / "communities.npz", 200),
        "boston": fixed(filed, uci / "boston.npz", 150),
        "boston, squares": fixed(filed, uci / "boston.npz", 250, squares=True),
        "concrete": fixed(filed, uci / "concrete.npz", 150),
        "concrete, squares": fixed(
            filed, uci / "concrete.npz", 150, squares=True
        ),
        "energy": fixed(filed, uci / "energy.npz", 150),
        "yacht": fixed(filed, uci / "yacht.npz", 150),
        "red wine": fixed(filed, uci / "wine.npz", 200),
        "kin8nm": fixed(filed, uci / "kin8nm.npz", 200),
        "power": fixed(filed, uci / "power.npz", 100),
        "tecator, fat": fixed(
            filed, nir / "tecator.npz", 140, band=2, target=1
        ),
        "corn, oil": fixed(filed, nir / "corn.npz", 60, band=10, target=1),
        "gasoline": fixed(filed, nir / "gasoline.npz", 45, band=8),
    }
    return SETS | files
