"""The logistic regression that every method ends with."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

SMALLEST = 1e-3  # of a weight: votes with less are left out


def fitted(texts, weights, clean, strength, clean_weight):
    """A logistic regression on weighted votes and clean texts.

    Args:
        texts: `Texts`.
        weights: Array, a weight for each vote; `None` for no votes.
        clean: Positions of the clean texts.
        strength: Float, scikit-learn's `C`.
        clean_weight: Float, of a clean text.
    """
    x, labels = texts.clean(clean)
    if weights is None:
        own = np.full(len(x), clean_weight)
    else:
        weights = weights / weights.mean()
        kept = weights > SMALLEST
        x = np.vstack([texts.x[texts.rows[kept]], x])
        labels = np.concatenate([texts.labels[kept], labels])
        own = np.append(weights[kept], np.full(len(clean), clean_weight))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        head = LogisticRegression(C=strength, max_iter=200)
        return head.fit(x, labels, sample_weight=own)


def accuracy(texts, weights, clean, strength, clean_weight):
    """The share of right classes on the test texts."""
    head = fitted(texts, weights, clean, strength, clean_weight)
    x, labels = texts.test
    return float(np.mean(head.predict(x) == labels))
