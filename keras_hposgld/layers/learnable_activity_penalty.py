"""A penalty of the outputs of a layer, whose strength is learned."""

import keras
import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable

NORMS = ("l1", "l2")


@register("activity_penalty")
class LearnableActivityPenalty(Hyperparameter, keras.layers.Layer):
    """Penalizes large outputs of the layer before it, with a learned strength.

    What goes in comes out. An example adds the strength times the sum of the
    squares (or sizes) of its activities to the loss, which is the mean over the
    examples. So does `activity_regularizer=` in Keras today; versions that sum
    over the batch as well have to have the strength divided by its size.

    The penalty belongs to the inner objective, as other regularization does:
    the outer loss leaves it out. Sample weights do not apply to it. Steps that
    a mask leaves out do not count. An exported model is without it.

    Args:
        initial_value: Float in `(0, max_value)`: the strength at first.
            Defaults to `1e-3`.
        max_value: Float, its bound. Defaults to `10.0`.
        norm: `"l2"` (default), squares, or `"l1"`, sizes, which makes
            activities sparse.
        name: String.

    Call arguments:
        inputs: Tensor `(batch, ...)`.
        mask: Boolean tensor of the first axes of `inputs`, or `None`.

    Raises:
        ValueError: If an argument is out of range or unknown.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, "relu"),
            hs.layers.LearnableActivityPenalty(1e-2),
            keras.layers.Dense(1),
        ]
    )
    (penalty,) = hs.find_hyperparameters(model)
    print(penalty.hyperparameter_values())
    ```
    """

    granularity = "layer"

    def __init__(
        self,
        initial_value: float = 1e-3,
        max_value: float = 10.0,
        norm: str = "l2",
        name: str | None = None,
    ):
        super().__init__(name=name, trainable=False)
        self.norm = check_known("norm", norm, NORMS)
        self.max_value = check_number(
            "max_value", max_value, zero_allowed=False
        )
        start = bounded_start("initial_value", initial_value, self.max_value)
        self.initial_value = float(initial_value)
        self.variable = unconstrained_variable(start, "strength", self.name)
        self.supports_masking = True

    def call(self, inputs, mask=None):
        dtype = self.variable.dtype
        activities = tf.cast(inputs, dtype)
        sizes = tf.abs(activities) if self.norm == "l1" else activities**2
        if mask is not None:
            ones = [1] * (len(sizes.shape) - len(mask.shape))
            sizes *= tf.reshape(
                tf.cast(mask, dtype), tf.concat([tf.shape(mask), ones], 0)
            )
        each = tf.reduce_sum(sizes, list(range(1, len(sizes.shape))))
        self.add_loss(self.value() * tf.reduce_mean(each))
        return inputs

    def value(self) -> tf.Tensor:
        """The strength, a scalar tensor."""
        return bounded_value(self.variable, self.max_value)

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        return [self.variable]

    def hyperparameter_values(self) -> dict:
        return {self.variable.path: self.value()}

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self) -> dict:
        return {
            "initial_value": self.initial_value,
            "max_value": self.max_value,
            "norm": self.norm,
            "name": self.name,
        }
