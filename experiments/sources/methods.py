"""What gives a weight to each vote: ours, rivals and plain baselines.

Each method is a function of the texts, the positions of the clean ones and a
seed. It returns the weights of the votes (`None`: no votes) and its seconds.
"""

import functools
import time

import numpy as np
from sklearn.linear_model import Ridge
from sources.heads import fitted
from sources.learned import learned_weights
from sources.texts import NUM_SOURCES

WIDEST = 41  # the source that votes on most texts
NUM_MIXTURES = 48  # ten times the time of learning


def timed(method):
    """A method of weights of sources, as one of votes that takes its time."""

    @functools.wraps(method)
    def run(texts, clean, seed):
        start = time.perf_counter()
        weights = method(texts, clean, seed)
        seconds = time.perf_counter() - start
        return (None if weights is None else weights[texts.sources]), seconds

    return run


@timed
def uniform(texts, clean, seed):
    """Every vote counts the same."""
    return np.ones(NUM_SOURCES)


@timed
def clean_alone(texts, clean, seed):
    """No vote counts."""
    return None


def majority(texts, clean, seed):
    """The votes for the class that most sources vote for."""
    agree = texts.labels == texts.majority[texts.rows]
    return agree / np.bincount(texts.rows, agree)[texts.rows].clip(1), 0.0


@timed
def hits(texts, clean, seed):
    """By the share of hits on the clean texts, whose votes it sees as well.

    The other methods do without those votes.
    """
    votes, labels = texts.pool_votes[clean], texts.pool[1][clean]
    given = votes >= 0
    right = ((votes == labels[:, None]) & given).sum(0)
    return (right + 0.5) / (given.sum(0) + 1.0)


@timed
def without_the_widest(texts, clean, seed):
    """One source left out, by somebody who has looked."""
    weights = np.ones(NUM_SOURCES)
    weights[WIDEST] = 0.0
    return weights


@timed
def oracle(texts, clean, seed):
    """The sources that are right more often than not, by all right labels."""
    is_right = texts.labels == texts.truth[texts.rows]
    number = np.bincount(texts.sources, minlength=NUM_SOURCES).clip(1)
    right = np.bincount(texts.sources, is_right, minlength=NUM_SOURCES)
    return (right / number > 0.5).astype(float)


@timed
def alignment(texts, clean, seed):
    """By how much the gradient of a source lowers the loss of clean texts.

    One step at the model of uniform weights, as FastMix does: the inner product
    of the gradients, where it is above 0.
    """
    head = fitted(texts, np.ones(len(texts.rows)), clean, 0.1, 1.0)
    target = _gradients(head, *texts.clean(clean)).mean(0)
    each = _gradients(head, texts.x[texts.rows], texts.labels) @ target
    number = np.bincount(texts.sources, minlength=NUM_SOURCES).clip(1)
    score = np.bincount(texts.sources, each, minlength=NUM_SOURCES) / number
    return np.maximum(score, 0.0) + 1e-6


def _gradients(head, x, labels):
    """Of the loss of each example, by the kernel: `(n, classes * features)`."""
    wrong = head.predict_proba(x) - np.eye(len(head.classes_))[labels]
    return (wrong[:, :, None] * x[:, None]).reshape(len(x), -1)


@timed
def regression(texts, clean, seed):
    """By a regression of the loss of clean texts on random mixtures.

    As RegMix does: train on random mixtures, fit the loss by their logarithms,
    take the mean of the best of many more, as predicted.
    """
    rng = np.random.default_rng(seed)
    x, labels = texts.clean(clean)
    mixtures, losses = [], []
    for _ in range(NUM_MIXTURES):
        mixture = np.exp(2.0 * rng.normal(size=NUM_SOURCES))
        head = fitted(texts, mixture[texts.sources], clean[:0], 0.1, 1.0)
        probabilities = head.predict_proba(x)
        column = np.searchsorted(head.classes_, labels)
        own = probabilities[np.arange(len(x)), column]
        mixtures.append(np.log(mixture))
        losses.append(-np.log(own.clip(1e-12)).mean())
    model = Ridge(alpha=1.0).fit(mixtures, losses)
    many = 2.0 * rng.normal(size=(10_000, NUM_SOURCES))
    best = many[np.argsort(model.predict(many))[:100]]
    return np.exp(best.mean(0))


@timed
def learned_softmax(texts, clean, seed):
    """Ours, the weights a softmax."""
    return learned_weights(texts, clean, "softmax", seed)


@timed
def learned_bounded(texts, clean, seed):
    """Ours, each weight bounded."""
    return learned_weights(texts, clean, "bounded", seed)


METHODS = {
    method.__name__: method
    for method in (
        *(uniform, majority, clean_alone, hits, alignment, regression),
        *(learned_softmax, learned_bounded, without_the_widest, oracle),
    )
}
