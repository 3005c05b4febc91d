"""How given labels came from true ones: a channel between classes.

An example of the true class k got the label g with probability T[k, g]. With
the class probabilities p of a model, raised to a power t and normalized,

    P(g | x) = sum_k p_k(x)^t T[k, g] / sum_k p_k(x)^t,
    P(k | x, g) = p_k(x)^t T[k, g] / sum_j p_j(x)^t T[j, g].

T is fitted by expectation maximization, and t is the one of `POWERS` under
which the given labels are most likely: models are too sure, or not enough.

Reference:
    Dempster, Laird and Rubin, "Maximum Likelihood from Incomplete Data via the
    EM Algorithm", JRSS B 1977. Dawid and Skene, "Maximum Likelihood Estimation
    of Observer Error-Rates Using the EM Algorithm", Applied Statistics 1979.
"""

from typing import NamedTuple

import numpy as np

POWERS = (0.5, 0.7, 1.0, 1.25, 1.5, 2.0, 3.0)
ITERATIONS = 25
# Examples that each pair of classes has before any is seen.
PRIOR_COUNT = 0.5


class LabelChannel(NamedTuple):
    """What `fit_label_channel` returns.

    Attributes:
        posterior: Array `(n, K)`: P(k | x, g) of each example.
        channel: Array `(K, K)`: T, whose rows sum to 1.
        power: Float, t.
        log_likelihood: Float, the mean of log P(g | x).
    """

    posterior: np.ndarray
    channel: np.ndarray
    power: float
    log_likelihood: float


def fit_label_channel(
    log_probabilities: np.ndarray, labels: np.ndarray
) -> LabelChannel:
    """Fits the channel, and tells how likely each class is the true one.

    Args:
        log_probabilities: Array `(n, K)`, log p. Rows need not be normalized.
        labels: Integer array `(n,)`, the given labels, 0 to K - 1. Classes
            that no example is given may be among the K.

    Returns:
        `LabelChannel`, that of the most likely power.
    """
    fits = [_fit(log_probabilities, labels, power) for power in POWERS]
    return max(fits, key=lambda fit: fit.log_likelihood)


def _fit(
    log_probabilities: np.ndarray, labels: np.ndarray, power: float
) -> LabelChannel:
    p = _softmax(power * log_probabilities)
    num_classes = p.shape[1]
    given = np.eye(num_classes)[labels]
    channel = 0.5 * np.eye(num_classes) + 0.5 / num_classes
    for _ in range(ITERATIONS):
        joint = p * channel[:, labels].T
        total = joint.sum(axis=1, keepdims=True)
        posterior = joint / total
        counts = posterior.T @ given + PRIOR_COUNT
        channel = counts / counts.sum(axis=1, keepdims=True)
    return LabelChannel(posterior, channel, power, float(np.log(total).mean()))


def _softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)
