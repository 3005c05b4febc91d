"""A learned polynomial of targets and predictions."""

import math

import tensorflow as tf

from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.losses.learnable_loss import LearnableLoss

CENTER = (0.0, 0.5)


@register("taylor_loss")
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
