"""Squared error with a learned noise: a Gaussian likelihood."""

import math

import tensorflow as tf

from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters import bijectors
from keras_hposgld.hyperparameters import half_cauchy
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.losses.learnable_loss import LearnableLoss

# The logarithm of sigma moves by so much of its distance, and by so much at
# most: a noise that falls makes the likelihood stiff, which the step sizes of
# the weights have to follow.
RATE = 0.2
FASTEST = 0.02
LARGEST_SHARE = 0.999  # of `max_value`


@register("gaussian_loss")
class LearnableGaussianLoss(LearnableLoss):
    """Minus the log-likelihood of targets with Gaussian noise.

    For regression. With the predictions f and one standard deviation sigma for
    all examples, an example costs

        sum((y - f)^2) / (2 sigma^2) + k log(sigma sqrt(2 pi)),

    the sum over its k targets. Sigma is learned. This loss is a density of the
    targets, so that it cannot become small by itself: it needs no `outer_loss`
    beside it, and `Evidence` takes it. An example with the sample weight w
    counts as w examples.

    Args:
        initial_value: Float in `(0, max_value)`: sigma at first, in the unit
            of the targets. Defaults to `1.0`, that of standardized targets.
        max_value: Float. Defaults to `10.0`.
        name: String.
        reduction: As in `keras.losses.Loss`.

    Raises:
        ValueError: If a number is out of range, or if targets and predictions
            differ in shape.

    Example:

    ```python
    import keras_hposgld as hs

    loss = hs.losses.LearnableGaussianLoss(0.5)
    print(loss([[1.0], [2.0]], [[1.5], [2.0]]), loss.hyperparameter_values())
    ```
    """

    needs_outer_loss = False  # it is normalized
    num_targets: int | None = None  # of an example, once it was called

    def __init__(
        self,
        initial_value: float = 1.0,
        max_value: float = 10.0,
        name: str | None = None,
        reduction: str = "sum_over_batch_size",
    ):
        max_value = check_number("max_value", max_value, zero_allowed=False)
        start = bounded_start("initial_value", initial_value, max_value)
        super().__init__(start, "noise", name=name, reduction=reduction)
        self.initial_value = float(initial_value)
        self.max_value = max_value

    def constrained(self) -> tf.Tensor:
        return bounded_value(self.variable, self.max_value)

    def noise_deviation(self) -> tf.Tensor:
        return self.constrained()

    def log_normalizer(self, temperature: float) -> tf.Tensor:
        """Zero: it is no prior, and its integral over the targets is one."""
        return tf.zeros([], self.variable.dtype)

    def renewed(self, end: ChainEnd) -> list | None:
        """Moves the variance towards the mean of the squared errors.

        With r that mean over the variance, the derivative of the free energy
        by log sigma is k (1 - r), for k targets. Where the weights were drawn
        from their law given all else, so is the variance: see `_drawn`.
        """
        if end.squared_errors is not None and end.rule == "gibbs":
            return [(self.variable, self._drawn(end))]
        if self.num_targets is None:
            return None
        by_log = end.slope(self.variable) / tf.sigmoid(-self.variable.value)
        ratio = 1.0 - by_log / (self.num_targets * self.num_outputs)
        change = tf.clip_by_value(RATE * (ratio - 1.0) / 2, -FASTEST, FASTEST)
        variable = tf.convert_to_tensor(self.variable)
        log_deviation = self._log_deviation(variable) + change
        return [(self.variable, self._unconstrained(log_deviation))]

    def _drawn(self, end: ChainEnd) -> tf.Tensor:
        """A draw of the variable, with a half-Cauchy prior of sigma.

        Its scale is `initial_value`. A prior that is flat in log sigma would be
        none: with more inputs than examples the noise would go to zero.
        """
        total, number = end.squared_errors
        variable = tf.cast(self.variable, total.dtype)
        precision = tf.exp(-2.0 * self._log_deviation(variable))
        seeds = [end.seed_of(self.variable, purpose) for purpose in range(2)]
        precision, _ = half_cauchy.draw(
            *(precision, self.initial_value**-2, number / 2, total / 2, seeds)
        )
        log_deviation = -0.5 * tf.math.log(precision)
        new = self._unconstrained(log_deviation)
        return tf.cast(new, self.variable.dtype)

    def _log_deviation(self, variable: tf.Tensor) -> tf.Tensor:
        return math.log(self.max_value) + tf.math.log_sigmoid(variable)

    def _unconstrained(self, log_deviation: tf.Tensor) -> tf.Tensor:
        largest = math.log(LARGEST_SHARE * self.max_value)
        return bijectors.bounded_from_log(
            tf.minimum(log_deviation, largest), self.max_value
        )

    def call(self, y_true, y_pred):
        y_pred = tf.convert_to_tensor(y_pred)
        y_true = tf.cast(y_true, y_pred.dtype)
        if len(y_true.shape) == len(y_pred.shape) - 1 and y_pred.shape[-1] == 1:
            y_true = y_true[..., None]
        if not y_true.shape.is_compatible_with(y_pred.shape):
            raise ValueError(
                "Targets must have the shape of the predictions. Received: "
                f"targets of shape {tuple(y_true.shape)} and predictions of "
                f"shape {tuple(y_pred.shape)}. Give the model an output for "
                "each target."
            )
        self.num_targets = math.prod(y_pred.shape[1:])
        variable = tf.convert_to_tensor(self.variable)
        # Of a deviation whose square is zero in its dtype, too.
        log_deviation = tf.cast(self._log_deviation(variable), y_pred.dtype)
        squares = ((y_true - y_pred) * tf.exp(-log_deviation)) ** 2
        each = squares / 2 + log_deviation + math.log(2 * math.pi) / 2
        return tf.reduce_sum(each, list(range(1, len(each.shape))))

    def get_config(self) -> dict:
        config = super().get_config() | {
            "initial_value": self.initial_value,
            "max_value": self.max_value,
        }
        del config["from_logits"]  # it is for classification
        return config
