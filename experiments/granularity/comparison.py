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
from guard import same_folds_gain
from guard import without_each
from ridge import Folds
from ridge import parts_of
from ridge import squared_errors
from strengths import best_scalar
from strengths import learn
from strengths import uniform

NUM_FOLDS = 5
SCALAR = "scalar"
SPLIT_SCALAR, SPLIT, SPLIT_PRIOR = (
    "one split, scalar",
    "one split",
    "one split + Laplace 1",
)
FOLDS = {  # arguments of `learn`, by the folds
    "folds": {"prior": None},
    "folds + Gauss 1": {"prior": "gauss"},
    "folds + Laplace 1": {"prior": "laplace"},
    "folds + Laplace 2": {"prior": "laplace", "scale": 2.0},
}
GUARDED = ("folds + Laplace 1", "folds + Laplace 2")
GUARDS = {  # whose gain, and how many standard errors it has to exceed
    "guard": ("cross-fitted", 1.0),
    "guard of 2 errors": ("cross-fitted", 2.0),
    "guard on the same folds": ("same folds", 1.0),
}
COLUMNS = (  # of the table of sets; the last one is the rule
    SPLIT,
    SPLIT_PRIOR,
    *FOLDS,
    *(f"{name} + guard" for name in GUARDED),
)
RULES = (
    SPLIT_SCALAR,
    SPLIT,
    SPLIT_PRIOR,
    *FOLDS,
    *(f"{name} + {guard}" for name in GUARDED for guard in GUARDS),
)


def one_split(x, y, rng):
    """A third of the examples as the outer ones."""
    outer, *inner = parts_of(len(x), 3, rng)
    return Folds(x, y, [(np.concatenate(inner), outer)])


def prepared(x, y, x_test, y_test, rng):
    """What every rule starts from, on one split of a set.

    Returns:
        A function from log strengths to the test error of ridge on the whole
        training part; the folds; the same without each part, for the guard;
        the best scalar and its outer loss.
    """
    everything = np.concatenate([x, x_test]), np.concatenate([y, y_test])
    inner, outer = np.split(np.arange(len(everything[0])), [len(x)])

    def error(logs):
        return squared_errors(*everything, inner, outer, logs).mean()

    parts = parts_of(len(x), NUM_FOLDS, rng)
    folds = Folds.cross(x, y, parts)
    return error, folds, without_each(x, y, parts), best_scalar(folds)


def compare(x, y, x_test, y_test, rng):
    """Test errors of all rules on one split of a set.

    Returns:
        Dictionary from a rule to its mean squared test error. With the guarded
        rules: how many deviations moved, and whether a guard kept them.
    """
    error, folds, left_out, (m, noise) = prepared(x, y, x_test, y_test, rng)
    row = {SCALAR: error(uniform(folds, m))}
    for name, prior in FOLDS.items():
        logs, deviations = learn(folds, m, noise, **prior)
        row[name] = error(logs)
        if name not in GUARDED:
            continue
        row[f"{name}, moved"] = int(np.sum(np.abs(deviations) > 1e-6))
        gains = {
            "same folds": same_folds_gain(folds, m, logs),
            "cross-fitted": cross_fitted_gain(left_out, **prior),
        }
        for guard, (kind, num_errors) in GUARDS.items():
            kept = exceeds(gains[kind], num_errors)
            row[f"{name} + {guard}"] = row[name if kept else SCALAR]
            row[f"{name} + {guard}, kept"] = kept

    split = one_split(x, y, rng)
    m, noise = best_scalar(split)
    row[SPLIT_SCALAR] = error(uniform(split, m))
    row[SPLIT] = error(learn(split, m, noise, prior=None)[0])
    row[SPLIT_PRIOR] = error(learn(split, m, noise)[0])
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
