"""Ways to find wrong labels and to do without them, on one part and seed.

Each method is a function of a `Run` that returns the AUC of its scores, the
test accuracy after its refit, and the share of the given labels that it keeps.
`nan` stands for what a method has not. The name is its docstring.
"""

import importlib.util
import math
import warnings

import numpy as np
from scipy.stats import rankdata

from keras_hposgld.diagnostics.label_channel import fit_label_channel

NONE = math.nan


def at_random(run):
    """random scores, half dropped."""
    scores = np.random.default_rng(run.seed).random(len(run.rows))
    return run.auc(scores), *run.filtered(scores < 0.5)


def no_cleaning(run):
    """given labels alone, loss."""
    model = run.trained(run.part.x, run.given)
    loss = run.loss(run.probabilities(model))
    return run.auc(loss), run.accuracy(model), 1.0


def both(run):
    """given labels and outer data, loss."""
    model = run.refit(run.given, np.ones(len(run.rows)))
    loss = run.loss(run.probabilities(model))
    return run.auc(loss), run.accuracy(model), 1.0


def cross_validated(run):
    """cross-validated self-confidence, filter."""
    keeps = run.left_out.argmax(1) == run.part.given
    return run.auc(run.loss(run.left_out)), *run.filtered(keeps)


def cleanlab_cross_validated(run):
    """cleanlab, cross-validated."""
    return _cleanlab(run, run.left_out)


def cleanlab_outer(run):
    """cleanlab, outer model."""
    return _cleanlab(run, run.probabilities(run.outer_model))


def _cleanlab(run, probabilities):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that no label names
        issues = find_label_issues(run.part.given, probabilities)
        quality = get_label_quality_scores(run.part.given, probabilities)
    return run.auc(-quality), *run.filtered(~issues)


def outer_alone(run):
    """outer data alone, loss."""
    loss = run.loss(run.probabilities(run.outer_model))
    return run.auc(loss), run.accuracy(run.outer_model), 0.0


def outer_filter(run):
    """outer data alone, filter."""
    probabilities = run.probabilities(run.outer_model)
    keeps = probabilities.argmax(1) == run.part.given
    return run.auc(run.loss(probabilities)), *run.filtered(keeps)


def outer_channel(run):
    """outer data alone, channel, correction."""
    probabilities = run.probabilities(run.outer_model)
    fit = fit_label_channel(
        np.log(np.maximum(probabilities, 1e-12)), run.part.given
    )
    scores = 1.0 - fit.posterior[run.rows, run.part.given]
    return _ours(run, scores, fit.posterior)


def weights_alone(run):
    """learned weights."""
    weights = run.learner.example_weights.numpy()
    model = run.refit(run.given, weights)
    return run.auc(-weights), run.accuracy(model), float(weights.mean())


def margins_alone(run):
    """learned: loss of the model."""
    loss = run.loss(run.probabilities(run.learner))
    return run.auc(loss), run.accuracy(run.learner), NONE


def weights_and_margins(run):
    """learned: ranks of weights and losses."""
    loss = run.loss(run.probabilities(run.learner))
    ranks = rankdata(loss) + rankdata(-run.learner.example_weights.numpy())
    return run.auc(ranks), NONE, NONE


def ours(run):
    """ours."""
    return _ours(run, *run.ours())


def ours_and_outer(run):
    """ours, outer."""
    return _ours(run, *run.ours([run.outer_model]))


def ours_twice(run):
    """ours, twice."""
    refit = run.corrected(run.ours()[1])
    return _ours(run, *run.ours([refit]))


def ours_outer_twice(run):
    """ours, outer, twice."""
    _, probabilities = run.ours([run.outer_model])
    refit = run.corrected(probabilities)
    return _ours(run, *run.ours([run.outer_model, refit]))


def ours_filter(run):
    """ours, filter in place of correction."""
    scores, _ = run.ours()
    return run.auc(scores), *run.filtered(scores < 0.5)


def _ours(run, scores, probabilities):
    model = run.corrected(probabilities)
    return run.auc(scores), run.accuracy(model), float(np.mean(scores < 0.5))


def perfect_filter(run):
    """oracle: right labels and outer data."""
    return 1.0, *run.filtered(~run.is_wrong)


def true_labels(run):
    """oracle: true labels and outer data."""
    model = run.refit(
        np.eye(run.part.num_classes)[run.part.true], np.ones(len(run.rows))
    )
    return NONE, run.accuracy(model), 1.0


CLEANLAB = (cleanlab_cross_validated, cleanlab_outer)
METHODS = (
    *(at_random, no_cleaning, both, cross_validated),
    *(*CLEANLAB, outer_alone, outer_filter, outer_channel),
    *(weights_alone, margins_alone, weights_and_margins),
    *(ours, ours_filter, ours_and_outer, ours_twice, ours_outer_twice),
    *(perfect_filter, true_labels),
)


def methods(names=()):
    """Name and function of those of these names, or of all.

    Those of cleanlab are left out where it is not installed.
    """
    has_cleanlab = importlib.util.find_spec("cleanlab") is not None
    named = {one.__doc__.splitlines()[0].rstrip("."): one for one in METHODS}
    return {
        name: method
        for name, method in named.items()
        if (not names or name in names)
        and (has_cleanlab or method not in CLEANLAB)
    }
