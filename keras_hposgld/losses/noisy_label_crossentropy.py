"""Cross-entropy with labels of which some are wrong: a learned noise model.

A model says by p how probable each true class is. A row-stochastic matrix T
says what becomes of it: T[k, j] is the probability of the label j where k is
true. A label then has the probability (p T)[label], whose logarithm with a
minus is the loss. The sum over the labels is one, whatever p and T: the loss is
a likelihood, and cannot become small by itself.
"""

import math
import numbers
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters import bijectors
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.losses.label_noise import checked_matrix
from keras_hposgld.losses.label_noise import next_log_rate
from keras_hposgld.losses.label_noise import next_logits
from keras_hposgld.losses.label_noise import step_of
from keras_hposgld.losses.label_noise import symmetric
from keras_hposgld.losses.learnable_loss import asks_from_above
from keras_hposgld.losses.learnable_loss import LearnableLoss

NOISES = ("rate", "matrix")
NEAR_BOUND = 0.95  # of `max_value`
LARGEST_SHARE = 0.999  # of `max_value`
TRUSTED = 0.5  # the least share of right labels that says which class it is
LOWEST = -60.0  # the logarithm of an entry of T: no label is impossible


@register("noisy_labels")
class NoisyLabelCrossentropy(LearnableLoss):
    """Cross-entropy of labels that are flipped with a learned probability.

    With the class probabilities p of the model, an example costs

        -log(sum_k p[k] T[k, label]),

    where T[k, j] is the probability of the label j if the true class is k. The
    model predicts the true class: only its loss knows of the noise.

    * `noise="rate"`: one number r, the share of the labels that are flipped,
      each to one of the other classes with the same probability.
    * `noise="matrix"`: T itself. Each row is a softmax of its own logits.

    It is a normalized likelihood. `hypergradient="evidence"` learns it from the
    noisy labels alone, with a prior: Dirichlet(1 + c T0[k]) of the row k, or
    Beta(1 + c r0, 1 + c (1 - r0)) of the rate, for c `prior_labels` and the
    `initial_value` r0 or T0. With outer data, `compile` asks for an
    `outer_loss` beside it: a plain cross-entropy if the outer labels are right,
    this very object if they are as noisy as the others.

    Targets are integer classes or one-hot vectors, and may have axes between
    that of the examples and that of the classes. `fit` warns at its end if the
    noise that it found leaves open which class is which.

    Args:
        num_classes: Integer, at least 2.
        noise: `"rate"` (default) or `"matrix"`.
        initial_value: Float in `(0, max_value)`: the share of flipped labels at
            first. Or, for a matrix, an array `(num_classes, num_classes)` with
            rows of positive numbers whose sum is 1: T at first. Defaults to
            `0.1`.
        max_value: Float in `(0, 1 - 1 / num_classes]`, the bound of a rate.
            `None` (default): that upper bound, where labels say nothing. A
            matrix is not bounded, but starts below it.
        from_logits: Boolean: whether predictions are logits. Defaults to
            `False`.
        prior_labels: Float `>= 0`, what the prior is worth: so many labels in
            all for a rate, or of each class for a matrix. For the evidence.
            Defaults to `10.0`.
        name: String.
        reduction: As in `keras.losses.Loss`.

    Raises:
        ValueError: If an argument is out of range, or if the model has another
            number of classes.

    Reference:
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise",
        CVPR 2017: their forward correction, whose T is given, is this loss.

    Example:

    ```python
    import keras_hposgld as hs

    loss = hs.losses.NoisyLabelCrossentropy(2, initial_value=0.2)
    print(loss([1], [[0.9, 0.1]]))  # -log(0.9 * 0.2 + 0.1 * 0.8)
    print(loss.noise_matrix(), loss.wrong_label_probability([1], [[0.9, 0.1]]))
    ```
    """

    def __init__(
        self,
        num_classes: int,
        noise: str = "rate",
        initial_value: Any = 0.1,
        max_value: float | None = None,
        from_logits: bool = False,
        prior_labels: float = 10.0,
        name: str | None = None,
        reduction: str = "sum_over_batch_size",
    ):
        num_classes = check_count("num_classes", num_classes, 2)
        check_known("noise", noise, NOISES)
        largest = 1.0 - 1.0 / num_classes
        bound = largest
        if max_value is not None:
            bound = check_number("max_value", max_value, False, largest)
        if noise == "rate" or isinstance(initial_value, numbers.Real):
            start = bounded_start("initial_value", initial_value, bound)
            initial_value = float(initial_value)
            self._first = symmetric(initial_value, num_classes)
        else:
            self._first = checked_matrix(initial_value, num_classes)
            initial_value = self._first.tolist()
        if noise == "matrix":
            start = np.log(self._first)
        super().__init__(start, f"noise_{noise}", from_logits, name, reduction)
        self.num_classes = num_classes
        self.noise = noise
        self.initial_value = initial_value
        self.max_value = max_value
        self.bound = bound
        self.prior_labels = check_number("prior_labels", prior_labels)

    def constrained(self) -> tf.Tensor:
        """The rate, or the matrix `(num_classes, num_classes)`."""
        if self.noise == "rate":
            return bounded_value(self.variable, self.bound)
        logits = tf.convert_to_tensor(self.variable)
        return tf.exp(tf.maximum(tf.nn.log_softmax(logits), LOWEST))

    def noise_matrix(self) -> tf.Tensor:
        """T, `(num_classes, num_classes)`: a row for each true class."""
        value = self.constrained()
        if self.noise == "matrix":
            return value
        return symmetric(value, self.num_classes)

    def log_normalizer(self, temperature: float) -> tf.Tensor:
        """Zero: it is no prior, and its sum over the labels is one."""
        return tf.zeros([], self.variable.dtype)

    def num_terms(self, y_pred: Any) -> int:
        """The labels of an example, of which Keras takes the mean."""
        return math.prod(y_pred.shape[1:-1])

    def call(self, y_true, y_pred):
        y_pred = self._wide(y_pred)
        targets = self.targets(y_true, y_pred)
        p = self.probabilities(y_pred)
        mixed = self._mixed(p)
        if asks_from_above():
            # The bound of the EM algorithm, convex in the logits.
            matrix = tf.cast(self.noise_matrix(), p.dtype)
            true = p * tf.matmul(targets / mixed, matrix, transpose_b=True)
            logs = self.log_probabilities(y_pred)
            return -tf.reduce_sum(tf.stop_gradient(true) * logs, -1)
        # No logarithm of a p is needed: T keeps each sum away from zero.
        return -tf.reduce_sum(targets * tf.math.log(mixed), -1)

    def wrong_label_probability(self, y_true, y_pred) -> tf.Tensor:
        """How probable it is that a label is not the true class.

        Args:
            y_true: Labels, as for the loss.
            y_pred: What the model predicts, as for the loss.

        Returns:
            Tensor without the axis of the classes: one minus the share of
            p[label] T[label, label] in the sum over the true classes.
        """
        y_true, y_pred = np.asarray(y_true), self._wide(y_pred)
        targets = self.targets(y_true, y_pred)
        p = self.probabilities(y_pred)
        kept = tf.linalg.diag_part(tf.cast(self.noise_matrix(), p.dtype))
        right = p * kept / self._mixed(p)
        return 1.0 - tf.reduce_sum(targets * right, -1)

    def _wide(self, y_pred: Any) -> tf.Tensor:
        """Predictions in a dtype that tells small probabilities apart."""
        y_pred = tf.convert_to_tensor(y_pred)
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                "`num_classes` must be the number of the model's outputs. "
                f"Received: num_classes={self.num_classes} and predictions of "
                f"shape {tuple(y_pred.shape)}. Use one output for each class."
            )
        return tf.cast(y_pred, tf.float32) if y_pred.dtype.size < 4 else y_pred

    def _mixed(self, p: tf.Tensor) -> tf.Tensor:
        """The probability of each label, from those of the classes."""
        value = tf.cast(self.constrained(), p.dtype)
        if self.noise == "matrix":
            return tf.tensordot(p, value, 1)
        others = tf.maximum(value / (self.num_classes - 1), math.exp(LOWEST))
        return p + others * (1.0 - self.num_classes * p)

    # Learning from the noisy labels alone.

    def renewed(self, end: ChainEnd) -> list | None:
        """Moves T towards the counts that are expected, given the labels."""
        # Of minus the log-likelihood of a label, on average.
        slope = end.slope(self.variable) / self.num_outputs
        weight = self.prior_labels * end.temperature / self.num_outputs
        weight, step = tf.cast(weight, slope.dtype), step_of(end.number)
        if self.noise == "matrix":
            arguments = (self.variable.value, self._first, slope, weight, step)
            return [(self.variable, next_logits(*arguments))]
        variable = tf.convert_to_tensor(self.variable)
        by_rate = slope / (self.constrained() * tf.sigmoid(-variable))
        log_rate = math.log(self.bound) + tf.math.log_sigmoid(variable)
        log_rate = next_log_rate(
            log_rate, self.initial_value, by_rate, weight, step
        )
        largest = math.log(LARGEST_SHARE * self.bound)
        new = bijectors.bounded_from_log(
            tf.minimum(log_rate, largest), self.bound
        )
        return [(self.variable, new)]

    def faults(self) -> list[str]:
        """What leaves open which class is which."""
        value = np.asarray(self.constrained(), "float64")
        if self.noise == "rate":
            if value <= NEAR_BOUND * self.bound:
                return []
            return [
                "The learned flip rate is at its bound, where labels say next "
                f"to nothing of the classes. Received: {float(value):.3g}, "
                f"with the bound {self.bound:.3g}. The model may explain "
                "nothing yet: train it longer, start from a smaller "
                "`initial_value`, or learn the rate on outer data."
            ]
        kept = np.diag(value)
        rows = np.flatnonzero((kept < TRUSTED) | (kept < value.max(axis=1)))
        if not rows.size:
            return []
        shares = {int(row): round(float(kept[row]), 3) for row in rows[:5]}
        return [
            f"The learned noise matrix takes less than {TRUSTED:.0%} of the "
            f"labels of {rows.size} class{'es' * (rows.size > 1)} to be "
            "right, so that classes may have changed places, or the noise "
            f"explains what the model should. Received: {shares}, by class. "
            'Look at `noise_matrix()`; use `noise="rate"`, more `prior_labels` '
            "or outer data whose labels are right."
        ]

    def get_config(self) -> dict:
        return super().get_config() | {
            "num_classes": self.num_classes,
            "noise": self.noise,
            "initial_value": self.initial_value,
            "max_value": self.max_value,
            "prior_labels": self.prior_labels,
        }
