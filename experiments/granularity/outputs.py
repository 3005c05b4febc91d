"""A strength per input, per output or per parameter, for several outputs.

All are `m + d` with the Laplace prior, so finer ones have more to be chosen but
pay for each deviation. `n` of the prior counts residuals, examples times
outputs. "chosen" takes the granularity of the largest cross-fitted gain, if the
gain exceeds one standard error, else the scalar.
"""

import numpy as np
from comparison import NUM_FOLDS
from comparison import SCALAR
from guard import cross_fitted_gain
from guard import exceeds
from ridge import Folds
from ridge import parts_of
from ridge import squared_errors
from strengths import best_scalar
from strengths import learn
from strengths import uniform

GRANULARITIES = ("input", "output", "parameter")
CHOSEN = "chosen"
COLUMNS = (*GRANULARITIES, CHOSEN)


def compare(x, y, x_test, y_test, rng):
    """Test errors of all granularities on one split of a set."""
    everything = np.concatenate([x, x_test]), np.concatenate([y, y_test])
    inner, outer = np.split(np.arange(len(everything[0])), [len(x)])

    def error(logs):
        return squared_errors(*everything, inner, outer, logs).mean()

    parts = parts_of(len(x), NUM_FOLDS, rng)
    folds = Folds.cross(x, y, parts)
    m, noise = best_scalar(folds)
    row = {SCALAR: error(uniform(folds, m))}
    gains = {}
    for name in GRANULARITIES:
        row[name] = error(learn(folds, m, noise, granularity=name)[0])
        gains[name] = cross_fitted_gain(x, y, parts, granularity=name)
    best = max(gains, key=lambda name: gains[name].mean())
    row["choice"] = best if exceeds(gains[best]) else SCALAR
    row[CHOSEN] = row[row["choice"]]
    return row
