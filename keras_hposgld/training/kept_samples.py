"""What the kept samples of the weights say of some training examples.

They are run through the model once, at the end of a `fit`. That passes a tenth
of the examples at most that training has passed, unless it is cheap all the
same: with a small model. Where few examples are left of it, it is not done.
"""

import math
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.chain_statistics import chain_statistics
from keras_hposgld.training import posterior_average

EXAMPLES = 500
FEWEST = 20  # examples that are looked at
FOR_MIXING = 100
PART = 100  # examples of a call of the model
SHARE = 0.1  # of what training has passed; a step passes a batch three times
CHEAP = 1e8  # weights times examples times samples
# The least that a prediction of a classifier is taken for.
SMALLEST = 1e-7


def number_to_see(learner: keras.Model, steps: int, batch_size: int) -> int:
    """How many examples may be looked at, 0 where they would be too few.

    Args:
        learner: `PosteriorLearner`.
        steps: Integer, the inner steps of the `fit`.
        batch_size: Integer.
    """
    samples = max(1, learner.num_samples_used())
    weights = sum(math.prod(w.shape) for w in learner.trainable_variables)
    affordable = max(CHEAP / max(weights, 1), SHARE * 3 * steps * batch_size)
    number = min(EXAMPLES, int(affordable / samples))
    return number if number >= FEWEST else 0


def predictions(learner: keras.Model, x: Any) -> list:
    """The predictions of a model, by each sample in use.

    Args:
        learner: `PosteriorLearner`. Without samples: by the weights as they
            are.
        x: Structure of tensors.
    """
    number = learner.num_samples_used()
    if not number:
        return [_predict(learner.model, x)]
    sample = learner.posterior.reader(learner.model)
    rows = []
    for index in range(number):
        with keras.StatelessScope(sample(tf.constant(index))):
            rows.append(_predict(learner.model, x))
    return rows


def _predict(model: keras.Model, x: Any) -> Any:
    length = keras.tree.flatten(x)[0].shape[0]
    parts = []
    for first in range(0, length, PART):
        part = keras.tree.map_structure(
            lambda leaf, first=first: leaf[first : first + PART], x
        )
        y = model(part, training=False)
        parts.append(keras.tree.map_structure(posterior_average.wide, y))
    return keras.tree.map_structure(lambda *y: tf.concat(y, axis=0), *parts)


class Mixing(NamedTuple):
    """How far the kept samples agree, medians over predictions.

    Attributes:
        size: Float, how many independent samples they are worth.
        r_hat: Float, of the first half of them against the second.
    """

    size: float
    r_hat: float


def mixing(rows: list, kind: posterior_average.Numbers) -> Mixing:
    """Looks at what is averaged: probabilities where those are.

    Args:
        rows: List of tensors, the predictions of one output, at least 4.
        kind: One of `posterior_average.kinds_for`.
    """
    y = tf.stack([kind.values(row[:FOR_MIXING]) for row in rows])
    y = tf.cast(tf.reshape(y, [len(rows), 1, -1]), tf.float64)
    moves = tf.reduce_max(y, axis=[0, 1]) > tf.reduce_min(y, axis=[0, 1])
    y = tf.boolean_mask(y, moves, axis=2)
    if not y.shape[2]:
        # Sure of each class, to the last digit; or weights that do not move.
        is_sure = bool(tf.reduce_any(rows[0] != rows[-1]))
        return Mixing(len(rows), 1.0) if is_sure else Mixing(1.0, math.inf)
    sizes, r_hat = map(np.asarray, chain_statistics(y))
    # A sum of correlations may come out below zero, where they alternate.
    sizes = np.where(sizes > 0, sizes, len(rows))
    return Mixing(float(np.median(sizes)), float(np.median(r_hat)))


class Explained(NamedTuple):
    """What predictions are worth beside a constant one.

    Attributes:
        loss: Float, of the predictions.
        constant_loss: Float, of the best constant.
        error: Float, the standard error of the difference.
    """

    loss: float
    constant_loss: float
    error: float


def explained(
    loss: Any,
    kind_of_loss: str,
    y: Any,
    y_pred: tf.Tensor,
    sample_weight: Any = None,
) -> Explained | None:
    """Compares predictions of classes with their frequencies.

    Args:
        loss: Cross-entropy of Keras, an object or a function.
        kind_of_loss: String, its name without underscores.
        y: Tensor, the targets.
        y_pred: Tensor `(n, outputs)`; of another rank nothing is said.
        sample_weight: Tensor `(n,)` or `(n, 1)`; `None`: all count alike.

    Returns:
        `Explained`, or `None` where there is nothing to compare.
    """
    if len(y_pred.shape) != 2 or getattr(loss, "axis", -1) not in (-1, 1):
        return None
    weight = weights_of(sample_weight, len(y_pred))
    if kind_of_loss == "sparsecategoricalcrossentropy":
        y = tf.cast(tf.reshape(y, [-1]), tf.int32)
        shares = tf.one_hot(y, y_pred.shape[-1], dtype=y_pred.dtype)
    else:
        y = tf.reshape(tf.cast(y, y_pred.dtype), tf.shape(y_pred))
        shares = y
    share = tf.convert_to_tensor(np.average(shares, 0, weight), y_pred.dtype)
    share = tf.clip_by_value(share, SMALLEST, 1 - SMALLEST)
    if getattr(loss, "from_logits", False):
        is_binary = kind_of_loss == "binarycrossentropy"
        rest = 1 - share if is_binary else tf.ones_like(share)
        share = tf.math.log(share) - tf.math.log(rest)
    constant = tf.broadcast_to(share, tf.shape(y_pred))
    each = loss.call if isinstance(loss, keras.losses.Loss) else loss
    own, other = (np.asarray(each(y, p)) for p in (y_pred, constant))
    error = np.std((other - own) * weight) / math.sqrt(len(own))
    return Explained(
        float(np.average(own, weights=weight)),
        float(np.average(other, weights=weight)),
        float(error),
    )


def spread(y: Any, sample_weight: Any = None) -> float:
    """The standard deviation of targets, over all of their numbers.

    Args:
        y: Tensor `(n, ...)`.
        sample_weight: As in `explained`.
    """
    values = np.reshape(np.asarray(y, "float64"), (len(y), -1))
    weight = weights_of(sample_weight, len(values))
    mean = np.average(values, 0, weight)
    variance = np.average((values - mean) ** 2, 0, weight)
    return float(np.sqrt(variance.mean()))


def weights_of(sample_weight: Any, length: int) -> np.ndarray:
    """Weights of examples, of mean one."""
    if sample_weight is None:
        return np.ones(length)
    weights = np.reshape(np.asarray(sample_weight, "float64"), (length, -1))
    weights = weights.mean(axis=1)
    return weights / max(weights.mean(), SMALLEST)
