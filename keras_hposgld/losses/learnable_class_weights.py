"""Cross-entropy with a learned weight for each class."""

import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.losses.learnable_loss import LearnableLoss


@register("class_weights")
class LearnableClassWeights(LearnableLoss):
    """Cross-entropy with a learned weight for each class of the target.

    For classes that are rare in training but not in use, or whose labels are
    less to be trusted. `compile` asks for an `outer_loss` beside it.

    Args:
        num_classes: Integer, at least 2.
        initial_value: Float in `(0, max_value)`, or one for each class.
            Defaults to `1.0`.
        max_value: Float. Defaults to `10.0`.
        from_logits: Boolean: whether predictions are logits. Defaults to
            `False`.
        name: String.
        reduction: As in `keras.losses.Loss`.

    Raises:
        ValueError: If a number is out of range, or if the model has another
            number of classes.

    Example:

    ```python
    import keras_hposgld as hs

    loss = hs.losses.LearnableClassWeights(2, initial_value=[1.0, 4.0])
    print(loss([1], [[0.25, 0.75]]), loss.hyperparameter_values())
    ```
    """

    granularity = "class"

    def __init__(
        self,
        num_classes: int,
        initial_value: float = 1.0,
        max_value: float = 10.0,
        from_logits: bool = False,
        name: str | None = None,
        reduction: str = "sum_over_batch_size",
    ):
        num_classes = check_count("num_classes", num_classes, 2)
        max_value = check_number("max_value", max_value, zero_allowed=False)
        start = bounded_start(
            "initial_value", initial_value, max_value, (num_classes,)
        )
        super().__init__(start, "class_weights", from_logits, name, reduction)
        self.num_classes = num_classes
        self.initial_value = initial_value
        self.max_value = max_value

    def constrained(self) -> tf.Tensor:
        return bounded_value(self.variable, self.max_value)

    def call(self, y_true, y_pred):
        if y_pred.shape[-1] != self.num_classes:
            raise ValueError(
                "`num_classes` must be the number of the model's outputs. "
                f"Received: num_classes={self.num_classes} and predictions of "
                f"shape {tuple(y_pred.shape)}."
            )
        weights = tf.cast(self.constrained(), y_pred.dtype)
        targets = self.targets(y_true, y_pred)
        return -tf.reduce_sum(
            weights * targets * self.log_probabilities(y_pred), -1
        )

    def get_config(self) -> dict:
        return super().get_config() | {
            "num_classes": self.num_classes,
            "initial_value": self.initial_value,
            "max_value": self.max_value,
        }
