"""What the learnable losses have in common.

A learned loss is the inner objective alone: the weights are trained with it,
while the hyperparameters are to lower an outer loss of the user's choice. They
are held by the loss object, so it has to be the one that `compile` gets. Its
config holds what was learned, since Keras saves a loss by its config.
"""

import abc
import contextlib
import math
import threading
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable

_asked = threading.local()


@contextlib.contextmanager
def curvature_from_above() -> Iterator[None]:
    """In it, losses may bend more than they do, but not less.

    What looks for the largest step that is stable asks so. The second
    derivatives of a loss may cancel at one place, and not beside it: a loss of
    which that is true takes a function there that touches it from above, with
    the same first derivatives.
    """
    before = getattr(_asked, "is_open", False)
    _asked.is_open = True
    try:
        yield
    finally:
        _asked.is_open = before


def asks_from_above() -> bool:
    """Whether `curvature_from_above` is open."""
    return getattr(_asked, "is_open", False)


class LearnableLoss(Hyperparameter, keras.losses.Loss):
    """A loss with hyperparameters; see its subclasses.

    Args:
        start: Array: the unconstrained hyperparameters at first.
        variable_name: String.
        from_logits: Boolean: whether predictions are logits. Defaults to
            `False`: they are probabilities. For classification.
        name: String.
        reduction: As in `keras.losses.Loss`.
    """

    granularity = "loss"
    needs_outer_loss = True  # else it would learn to be small
    num_outputs = 1  # of a model, that it judges with one value

    def __init__(
        self,
        start,
        variable_name: str,
        from_logits: bool = False,
        name: str | None = None,
        reduction: str = "sum_over_batch_size",
    ):
        super().__init__(name=name, reduction=reduction)
        self.from_logits = bool(from_logits)
        self.variable = unconstrained_variable(start, variable_name, self.name)

    def __call__(self, y_true, y_pred, sample_weight=None):
        # Keras would make a list of tensors of a list of numbers.
        y_true, y_pred = (
            np.asarray(y) if isinstance(y, list | tuple) else y
            for y in (y_true, y_pred)
        )
        return super().__call__(y_true, y_pred, sample_weight)

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        return [self.variable]

    def saved_apart(self) -> list[tuple[str, keras.Variable]]:
        """The variable, since Keras saves a loss by its config alone."""
        return [("loss", self.variable)]

    def hyperparameter_values(self) -> dict:
        return {self.variable.path: self.constrained()}

    @abc.abstractmethod
    def constrained(self) -> tf.Tensor:
        """The hyperparameters as the loss uses them."""

    def probabilities(self, y_pred) -> tf.Tensor:
        """What the model predicts, `(n, num_classes)`."""
        return tf.nn.softmax(y_pred) if self.from_logits else y_pred

    def log_probabilities(self, y_pred) -> tf.Tensor:
        """The logarithm of `probabilities`, kept finite."""
        if self.from_logits:
            return tf.nn.log_softmax(y_pred)
        smallest = keras.config.epsilon()
        return tf.math.log(tf.clip_by_value(y_pred, smallest, 1.0))

    def num_terms(self, y_pred: tf.Tensor) -> int:
        """Over how many numbers of an example the loss is a mean.

        Args:
            y_pred: Tensor, the predictions of a batch.
        """
        return 1

    def targets(self, y_true, y_pred) -> tf.Tensor:
        """Targets as one-hot vectors, `(n, num_classes)`.

        Those of an integer that is no class are NaN, and so is the loss.

        Args:
            y_true: Integer classes, `(n,)` or `(n, 1)`, or one-hot vectors.
            y_pred: Tensor `(n, num_classes)`.

        Raises:
            ValueError: If there is one output, for two classes.
        """
        num_classes = y_pred.shape[-1]
        if num_classes is None or num_classes < 2:
            raise ValueError(
                f"`{type(self).__name__}` needs one output for each class, "
                "and at least two. Received: predictions of shape "
                f"{tuple(y_pred.shape)}. Use two outputs for two classes."
            )
        is_one_hot = len(y_true.shape) == len(y_pred.shape) and (
            y_true.shape[-1] == num_classes
        )
        if is_one_hot:
            return tf.cast(y_true, y_pred.dtype)
        if len(y_true.shape) == len(y_pred.shape):
            y_true = tf.squeeze(y_true, -1)
        y_true = tf.cast(y_true, tf.int32)
        one_hot = tf.one_hot(y_true, num_classes, dtype=y_pred.dtype)
        # Of a label that is no class they would be zeros, as would the loss.
        is_class = (y_true >= 0) & (y_true < num_classes)
        return tf.where(is_class[..., None], one_hot, math.nan)

    def get_config(self) -> dict:
        learned = np.asarray(self.variable.value, "float64").tolist()
        return super().get_config() | {
            "from_logits": self.from_logits,
            "learned": learned,
        }

    @classmethod
    def from_config(cls, config: dict) -> "LearnableLoss":
        config = dict(config)
        learned = config.pop("learned")
        loss = cls(**config)
        loss.variable.assign(learned)
        return loss
