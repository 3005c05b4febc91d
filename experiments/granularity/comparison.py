"""Rules that choose strengths, compared on many splits of a set.

Every rule sees the training part only. Its strengths are then held, ridge is
fitted to the whole training part, and the test error counts. A ratio below 1 is
better than the best scalar that the same folds choose.
"""

import dataclasses

import numpy as np
import scipy.stats
from guard import cross_fitted_gain
from guard import exceeds
from ridge import Folds
from ridge import parts_of
from ridge import squared_errors
from strengths import best_scalar
from strengths import learn
from strengths import uniform

NUM_FOLDS = 5
SCALAR = "scalar"
RULES = {  # prior of the deviations, by the folds
    "folds": None,
    "folds + Laplace": "laplace",
    "folds + Gauss": "gauss",
}
GUARDED = "folds + Laplace + guard"
COLUMNS = (
    "one split, scalar",
    "one split",
    "one split + Laplace",
    *RULES,
    GUARDED,
)


def one_split(x, y, rng):
    """A third of the examples as the outer ones."""
    outer, *inner = parts_of(len(x), 3, rng)
    return Folds(x, y, [(np.concatenate(inner), outer)])


def compare(x, y, x_test, y_test, rng):
    """Test errors of all rules on one split of a set.

    Returns:
        Dictionary from a rule to its mean squared test error, with the number
        of deviations of "folds + Laplace" that are not 0, and the cross-fitted
        gain with its standard error.
    """
    everything = np.concatenate([x, x_test]), np.concatenate([y, y_test])
    inner, outer = np.split(np.arange(len(everything[0])), [len(x)])

    def error(logs):
        return squared_errors(*everything, inner, outer, logs).mean()

    parts = parts_of(len(x), NUM_FOLDS, rng)
    folds = Folds.cross(x, y, parts)
    m, noise = best_scalar(folds)
    row = {SCALAR: error(uniform(folds, m))}
    for name, prior in RULES.items():
        logs, deviations = learn(folds, m, noise, prior=prior)
        row[name] = error(logs)
        if prior == "laplace":
            row["moved"] = int(np.sum(np.abs(deviations) > 1e-6))
    gains = cross_fitted_gain(x, y, parts)
    row["gain"] = gains.mean()
    row["gain_error"] = gains.std(ddof=1) / np.sqrt(len(gains))
    row["kept"] = exceeds(gains)
    row[GUARDED] = row["folds + Laplace" if row["kept"] else SCALAR]

    split = one_split(x, y, rng)
    m, noise = best_scalar(split)
    row["one split, scalar"] = error(uniform(split, m))
    row["one split"] = error(learn(split, m, noise, prior=None)[0])
    row["one split + Laplace"] = error(learn(split, m, noise)[0])
    return row


@dataclasses.dataclass
class Verdict:
    """A rule against the scalar, over the splits of one set."""

    ratio: float  # geometric mean of the test errors' ratios
    t: float
    p: float

    @classmethod
    def of(cls, rows, rule):
        """The paired test of the logarithms of the ratios."""
        logs = np.log([row[rule] / row[SCALAR] for row in rows])
        ratio = float(np.exp(logs.mean()))
        if np.ptp(logs) == 0.0:  # the scalar itself, on every split
            return cls(ratio, 0.0, 1.0)
        t, p = scipy.stats.ttest_1samp(logs, 0.0)
        return cls(ratio, float(t), float(p))

    @property
    def sign(self):
        """`-` for significantly better, `+` for worse, at 5 %."""
        if self.p >= 0.05:
            return ""
        return "-" if self.t < 0 else "+"


def summary(verdicts):
    """Numbers of sets better and worse, mean and largest ratio, of a rule."""
    signs = [verdict.sign for verdict in verdicts]
    ratios = [verdict.ratio for verdict in verdicts]
    mean = float(np.exp(np.mean(np.log(ratios))))
    return signs.count("-"), signs.count("+"), mean, max(ratios)
