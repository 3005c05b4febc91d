"""The guard: deviations are kept only if they gain more than their noise.

The strengths were fitted to the outer losses of the folds. So the gain in these
very losses is too large. The guard counts a gain where it is honest: for each
part, scalar and strengths are learned again from folds of the other parts, the
weights are fitted to the other parts, and the gain is counted on the part.
"""

import numpy as np
from ridge import Folds
from ridge import squared_errors
from strengths import best_scalar
from strengths import learn
from strengths import uniform


def same_folds_gain(folds, m, logs):
    """Gains per example on the folds that the strengths were fitted to."""
    scalar = folds.squared_errors(uniform(folds, m))
    return (scalar - folds.squared_errors(logs)).mean(axis=1)


def without_each(x, y, parts):
    """For each part the folds of the others, their best scalar, its loss.

    Args:
        x: Array `(examples, inputs)`.
        y: Array `(examples, outputs)`.
        parts: List of index arrays.

    Returns:
        List of `(part, inner examples, folds, m, noise)`, for
        `cross_fitted_gain`.
    """
    found = []
    for k, part in enumerate(parts):
        others = parts[:k] + parts[k + 1 :]
        folds = Folds.cross(x, y, others)
        found.append((part, np.concatenate(others), folds, *best_scalar(folds)))
    return found


def cross_fitted_gain(left_out, **prior):
    """Gains per example, by strengths that were learned without its part.

    Args:
        left_out: What `without_each` returns.
        prior: Arguments of `learn`.

    Returns:
        Array `(examples,)`, part after part: squared error of the scalar minus
        that of the strengths.
    """
    gains = []
    for part, inner, folds, m, noise in left_out:
        logs, _ = learn(folds, m, noise, **prior)
        scalar, learned = (
            squared_errors(folds.x, folds.y, inner, part, candidate)
            for candidate in (uniform(folds, m), logs)
        )
        gains.append((scalar - learned).mean(axis=1))
    return np.concatenate(gains)


def exceeds(gains, num_errors=1.0):
    """Whether the mean gain is above `num_errors` standard errors."""
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    return bool(gains.mean() > num_errors * error)
