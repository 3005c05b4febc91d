"""Cross-entropy with a learned amount of label smoothing."""

import tensorflow as tf

from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.losses.learnable_loss import LearnableLoss


@register("label_smoothing")
class LearnableLabelSmoothing(LearnableLoss):
    """Cross-entropy with label smoothing whose amount is learned.

    The target of a class is `(1 - s) * label + s / num_classes`, with one s for
    all examples. `compile` asks for an `outer_loss` beside it.

    Args:
        initial_value: Float in `(0, max_value)`: s at first. Defaults to
            `0.1`.
        max_value: Float in `(0, 1]`. Defaults to `1.0`.
        from_logits: Boolean: whether predictions are logits. Defaults to
            `False`.
        name: String.
        reduction: As in `keras.losses.Loss`.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        Szegedy et al., "Rethinking the Inception Architecture for Computer
        Vision", CVPR 2016.

    Example:

    ```python
    import keras_hposgld as hs

    loss = hs.losses.LearnableLabelSmoothing(0.2)
    print(loss([1], [[0.25, 0.75]]), loss.hyperparameter_values())
    ```
    """

    def __init__(
        self,
        initial_value: float = 0.1,
        max_value: float = 1.0,
        from_logits: bool = False,
        name: str | None = None,
        reduction: str = "sum_over_batch_size",
    ):
        # At 1 the targets say nothing.
        max_value = check_number(
            "max_value", max_value, zero_allowed=False, maximum=1
        )
        start = bounded_start("initial_value", initial_value, max_value)
        super().__init__(start, "smoothing", from_logits, name, reduction)
        self.initial_value = float(initial_value)
        self.max_value = max_value

    def constrained(self) -> tf.Tensor:
        return bounded_value(self.variable, self.max_value)

    def call(self, y_true, y_pred):
        smoothing = tf.cast(self.constrained(), y_pred.dtype)
        targets = self.targets(y_true, y_pred)
        targets = (1.0 - smoothing) * targets + smoothing / y_pred.shape[-1]
        return -tf.reduce_sum(targets * self.log_probabilities(y_pred), -1)

    def get_config(self) -> dict:
        return super().get_config() | {
            "initial_value": self.initial_value,
            "max_value": self.max_value,
        }
