"""A strength per input, per output or per parameter, for several outputs.

All are `m + d` with the Laplace prior, so finer ones have more to be chosen but
pay for each deviation. `n` of the prior counts residuals, examples times
outputs. "chosen" takes the granularity of the largest cross-fitted gain, if the
gain exceeds one standard error, else the scalar.
"""

import numpy as np
from comparison import prepared
from comparison import SCALAR
from guard import cross_fitted_gain
from guard import exceeds
from regression_sets import filed
from regression_sets import fixed
from regression_sets import NUM_TEST
from regression_sets import of_package
from regression_sets import shuffled
from strengths import learn
from strengths import uniform

GRANULARITIES = ("input", "output", "parameter")
CHOSEN = "chosen"
COLUMNS = (*GRANULARITIES, CHOSEN)


def compare(x, y, x_test, y_test, rng):
    """Test errors of all granularities on one split of a set."""
    error, folds, left_out, (m, noise) = prepared(x, y, x_test, y_test, rng)
    row = {SCALAR: error(uniform(folds, m))}
    gains = {}
    for name in GRANULARITIES:
        row[name] = error(learn(folds, m, noise, granularity=name)[0])
        gains[name] = cross_fitted_gain(left_out, granularity=name)
    best = max(gains, key=lambda name: gains[name].mean())
    row["choice"] = best if exceeds(gains[best]) else SCALAR
    row[CHOSEN] = row[row["choice"]]
    return row


def one_hot(rng, name, num_train):
    x, y = of_package(name)
    return shuffled(rng, x, np.eye(y.max() + 1)[y], num_train)


def outputs(rng, num_train, size, num_outputs, own_inputs, own_noise):
    """Several linear targets: relevant inputs, and noise, shared or own."""
    x = rng.normal(size=(num_train + NUM_TEST, size))
    relevant = rng.random((size, num_outputs if own_inputs else 1)) < 0.25
    signal = x @ (rng.normal(size=(size, num_outputs)) * relevant)
    signal = (signal - signal.mean(0)) / (signal.std(0) + 1e-9)
    spread = np.geomspace(0.2, 5, num_outputs) if own_noise else 1.0
    return x, signal + spread * rng.normal(size=signal.shape), num_train


def outputs_of(folder):
    """Sets of several outputs."""
    found = {
        "4 outputs, shared inputs": fixed(outputs, 100, 30, 4, False, False),
        "4 outputs, own inputs": fixed(outputs, 100, 30, 4, True, False),
        "4 outputs, own noise": fixed(outputs, 100, 30, 4, False, True),
        "4 outputs, own inputs and noise": fixed(
            outputs, 100, 30, 4, True, True
        ),
        "iris": fixed(one_hot, "iris", 75),
        "wines": fixed(one_hot, "wine", 80),
        "digits": fixed(one_hot, "digits", 300),
    }
    if folder is not None:
        nir = folder / "nir"
        found["tecator"] = fixed(filed, nir / "tecator.npz", 140, band=4)
        found["corn"] = fixed(filed, nir / "corn.npz", 60, band=20)
    return found
