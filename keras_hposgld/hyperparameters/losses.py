"""Learned loss functions for classification."""

import math

import keras
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters.learnable_loss import LearnableLoss
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value

__all__ = [
    "LearnableClassWeights",
    "LearnableLabelSmoothing",
    "LearnableTaylorLoss",
]

CENTER = (0.0, 0.5)


@keras.saving.register_keras_serializable(package="keras_hposgld")
class LearnableTaylorLoss(LearnableLoss):
    """A polynomial of targets and predicted probabilities, learned.

    With the target x (one or zero) and the probability y of a class, the loss
    of an example is minus the sum over its classes, divided by their number, of
    the third-order Taylor polynomial

        sum c_pq (x - a)^p (y - b)^q / (p! q!),  q >= 1, p + q <= 3,

    whose six coefficients c_pq and two centers a, b are the hyperparameters.
    Terms without y would not move the weights and are left out. It starts as
    the expansion of the cross-entropy, x log y, around (0, 0.5), which already
    bounds what a wrong label can do.

    An inner objective alone: `compile` asks for an `outer_loss` beside it.

    Args:
        from_logits: Boolean: whether predictions are logits. Defaults to
            `False`.
        name: String.
        reduction: As in `keras.losses.Loss`.

    Reference:
        Gonzalez and Miikkulainen, "Optimizing Loss Functions Through
        Multivariate Taylor Polynomial Parameterization", GECCO 2021. Their
        theta_0 and theta_1 are a and b, their theta_2 to theta_7 the c_pq.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=hs.SGLD(0.1),
        loss=hs.losses.LearnableTaylorLoss(from_logits=True),
        outer_loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True
        ),
    )
    assert learner.hyperparameters[0].shape == (8,)
    ```
    """

    # (p, q) of the coefficients, in the order of the variable's entries after
    # the two centers.
    POWERS = ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1))

    def __init__(
        self,
        from_logits: bool = False,
        name: str | None = None,
        reduction: str = "sum_over_batch_size",
    ):
        start = [*CENTER, *(_cross_entropy(p, q) for p, q in self.POWERS)]
        super().__init__(start, "taylor", from_logits, name, reduction)

    def constrained(self) -> tf.Tensor:
        return tf.convert_to_tensor(self.variable)

    def call(self, y_true, y_pred):
        a, b, *coefficients = tf.unstack(
            tf.cast(self.constrained(), y_pred.dtype)
        )
        x = self.targets(y_true, y_pred) - a
        y = self.probabilities(y_pred) - b
        polynomial = tf.add_n(
            [
                c
                * _power(x, p)
                * _power(y, q)
                / (math.factorial(p) * math.factorial(q))
                for c, (p, q) in zip(coefficients, self.POWERS, strict=True)
            ]
        )
        return -tf.reduce_mean(polynomial, axis=-1)


def _power(x, exponent):
    # A product: a general power has no second derivative at zero.
    return math.prod([x] * exponent) if exponent else tf.ones_like(x)


def _cross_entropy(p, q):
    """The derivative of x log y, p times by x and q times by y."""
    x, y = CENTER
    if p > 1:
        return 0.0
    by_x = x if p == 0 else 1.0
    return by_x * (-1.0) ** (q - 1) * math.factorial(q - 1) / y**q


@keras.saving.register_keras_serializable(package="keras_hposgld")
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


@keras.saving.register_keras_serializable(package="keras_hposgld")
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
