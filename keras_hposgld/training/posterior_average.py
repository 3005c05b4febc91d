"""The average of predictions over samples of the weights.

What is averaged is what the model says: numbers, or the probabilities behind
logits. One loop over the samples calls the model once; a running mean and a
running sum of squares (Welford) are all that it carries.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.loop import run_steps
from keras_hposgld.losses.learnable_loss import LearnableLoss


class Numbers:
    """Predictions that are averaged as they are."""

    def total(self, y: tf.Tensor) -> tf.Tensor:
        """A total of no predictions, for those shaped like `y`."""
        return tf.zeros_like(y)

    def add(self, total: tf.Tensor, y: tf.Tensor, index: Any) -> tf.Tensor:
        """The total with one more; `index` were there before."""
        return total + (y - total) / tf.cast(index + 1, y.dtype)

    def average(self, total: tf.Tensor, number: Any) -> tf.Tensor:
        """The average that a total of that many stands for."""
        return total

    def values(self, y: tf.Tensor) -> tf.Tensor:
        """What is averaged of predictions."""
        return y

    def average_of(self, ys: list) -> Any:
        """The average of a list, by operations that Keras saves."""
        return keras.ops.mean(keras.ops.stack(ys), axis=0)


class SoftmaxLogits(Numbers):
    """Logits whose average has the mean of their softmax as its softmax.

    Totals are logarithms of sums, so that no probability is too small.

    Args:
        axis: Integer, that of the classes.
    """

    def __init__(self, axis: int = -1):
        self.axis = axis

    def _logs(self, y: Any) -> list:
        return [keras.ops.log_softmax(y, axis=self.axis)]

    def _logit(self, logs: list) -> Any:
        return logs[0]

    def total(self, y: tf.Tensor) -> tf.Tensor:
        return tf.stack([tf.zeros_like(y) - math.inf for _ in self._logs(y)])

    def add(self, total: tf.Tensor, y: tf.Tensor, index: Any) -> tf.Tensor:
        return keras.ops.logaddexp(total, tf.stack(self._logs(y)))

    def average(self, total: tf.Tensor, number: Any) -> tf.Tensor:
        logs = total - tf.math.log(tf.cast(number, total.dtype))
        return self._logit(tf.unstack(logs))

    def values(self, y: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(y, axis=self.axis)

    def average_of(self, ys: list) -> Any:
        columns = zip(*map(self._logs, ys), strict=True)
        return self._logit(
            [
                keras.ops.logsumexp(keras.ops.stack(list(column)), axis=0)
                - math.log(len(ys))
                for column in columns
            ]
        )


class SigmoidLogits(SoftmaxLogits):
    """The same for two classes, of which only one has a logit."""

    def _logs(self, y: Any) -> list:
        return [keras.ops.log_sigmoid(y), keras.ops.log_sigmoid(-y)]

    def _logit(self, logs: list) -> Any:
        return logs[0] - logs[1]

    def values(self, y: tf.Tensor) -> tf.Tensor:
        return tf.sigmoid(y)


def kinds_of(loss: Any, y_pred: Any, output_names: Any = None) -> list[Numbers]:
    """How to average each output, by its loss; see `losses_of_outputs`."""
    losses = losses_of_outputs(loss, y_pred, output_names)
    return [_kind_of(one) for one in losses]


def losses_of_outputs(loss: Any, y_pred: Any, output_names: Any = None) -> list:
    """The loss of each output, as `compile` got it; nothing for one without.

    Args:
        loss: As `compile` got it: one, or a structure of them; `None` where
            there is none, so that all are averaged as they are.
        y_pred: Structure of predictions.
        output_names: List of strings: names of outputs that `y_pred` has none
            for.
    """
    outputs = keras.tree.flatten(y_pred)
    if isinstance(loss, dict) and not isinstance(y_pred, dict):
        losses = [loss.get(name) for name in output_names or list(loss)]
    elif isinstance(loss, dict):
        # In the order of the outputs, of which some may have no loss.
        parts = y_pred.copy()
        for name in y_pred:
            parts[name] = loss.get(name) or ""
        losses = keras.tree.flatten(parts)
    elif isinstance(loss, list | tuple):
        losses = keras.tree.flatten(loss)
    else:
        losses = [loss] * len(outputs)
    return [one for one, _ in zip(losses, outputs, strict=True)]


def _kind_of(loss: Any) -> Numbers:
    if not getattr(loss, "from_logits", False):
        return Numbers()
    if isinstance(loss, keras.losses.BinaryCrossentropy):
        return SigmoidLogits()
    of_classes = (
        keras.losses.CategoricalCrossentropy,
        keras.losses.SparseCategoricalCrossentropy,
        LearnableLoss,
    )
    if isinstance(loss, of_classes):
        return SoftmaxLogits(getattr(loss, "axis", -1))
    return Numbers()


def kinds_for(learner: keras.Model, y_pred: Any) -> list[Numbers]:
    """The same for a learner, by the loss that it was compiled with."""
    loss = None
    if learner.compiled:
        loss = learner.plain_compile_arguments()["loss"]
    return kinds_of(loss, y_pred, getattr(learner.model, "output_names", None))


def averaged(
    predict: Callable, like: list, kinds: list[Numbers], number: Any
) -> list:
    """The average of each output over the samples.

    Args:
        predict: Function from the number of a sample to a list of outputs.
        like: List of tensors that those are shaped like.
        kinds: List, what `kinds_of` returned.
        number: Integer tensor, how many samples there are, at least 1.
    """

    def step(totals: list, index: tf.Tensor) -> list:
        return [
            kind.add(total, wide(y), index)
            for kind, total, y in zip(
                kinds, totals, predict(index), strict=True
            )
        ]

    start = [kind.total(wide(y)) for kind, y in zip(kinds, like, strict=True)]
    totals = run_steps(step, start, number)
    return [
        tf.cast(kind.average(total, number), y.dtype)
        for kind, total, y in zip(kinds, totals, like, strict=True)
    ]


def averaged_with_deviation(
    predict: Callable, like: list, kinds: list[Numbers], number: Any
) -> tuple[list, list]:
    """The same, and the standard deviation of what is averaged."""

    def step(state: list, index: tf.Tensor) -> list:
        after = []
        for kind, (total, mean, squares), y in zip(
            kinds, state, predict(index), strict=True
        ):
            y = wide(y)
            moments = _welford(mean, squares, kind.values(y), index)
            after.append((kind.add(total, y, index), *moments))
        return after

    zeros = [tf.zeros_like(wide(y)) for y in like]
    start = [
        (kind.total(zero), zero, zero)
        for kind, zero in zip(kinds, zeros, strict=True)
    ]
    state = run_steps(step, start, number)
    means, deviations = [], []
    for kind, (total, _, squares), y in zip(kinds, state, like, strict=True):
        means.append(tf.cast(kind.average(total, number), y.dtype))
        variance = squares / tf.cast(number, squares.dtype)
        deviations.append(tf.cast(tf.sqrt(variance), y.dtype))
    return means, deviations


def _welford(
    mean: tf.Tensor, squares: tf.Tensor, value: tf.Tensor, index: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """The running mean, and the sum of squared distances from it."""
    away = value - mean
    mean += away / tf.cast(index + 1, value.dtype)
    return mean, squares + away * (value - mean)


def each(
    predict: Callable, like: list, number: Any, room: int
) -> list[tf.Tensor]:
    """The outputs of each sample, `(batch, room, ...)`.

    Args:
        predict: As in `averaged`.
        like: As in `averaged`.
        number: Integer tensor, how many samples there are, at least 1. Beyond
            them the last one is repeated.
        room: Integer, how many there can be. XLA has to know it.
    """

    def step(rows: list, index: tf.Tensor) -> list:
        ys = predict(tf.minimum(index, number - 1))
        return [row.write(index, y) for row, y in zip(rows, ys, strict=True)]

    start = [tf.TensorArray(y.dtype, room, element_shape=y.shape) for y in like]
    rows = [row.stack() for row in run_steps(step, start, room)]
    return [keras.ops.swapaxes(row, 0, 1) for row in rows]


def wide(y: tf.Tensor) -> tf.Tensor:
    """A tensor in a dtype in which many numbers can be added."""
    return tf.cast(y, tf.float32) if y.dtype.size < 4 else y
