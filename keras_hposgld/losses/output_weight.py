"""The loss of one output of a model, times a weight: learned, or fixed."""

import abc
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable
from keras_hposgld.losses.keras_loss import keras_loss


class WeightedLoss(keras.losses.Loss, abc.ABC):
    """A loss times a weight.

    Sample weights, masks and the reduction are those of the loss.

    Args:
        loss: Keras loss, its name, or a function of `(y, y_pred)`.
        name: String.
    """

    def __init__(self, loss: Any, name: str | None = None):
        self.loss = keras_loss(loss)
        super().__init__(name=name, reduction=self.loss.reduction)

    def __call__(self, y_true, y_pred, sample_weight=None):
        value = self.loss(y_true, y_pred, sample_weight)
        return value * tf.cast(self.constrained(), value.dtype)

    @abc.abstractmethod
    def constrained(self) -> tf.Tensor:
        """The weight, a scalar tensor."""

    def get_config(self) -> dict:
        return {
            "loss": keras.losses.serialize(self.loss),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict) -> "WeightedLoss":
        loss = keras.losses.deserialize(config["loss"])
        return cls(**config | {"loss": loss})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.name!r}: {self.loss.name}>"


@keras.saving.register_keras_serializable(package="keras_hposgld")
class FixedOutputWeight(WeightedLoss):
    """A loss times a constant.

    Args:
        loss: As in `LearnableOutputWeight`.
        value: Float `> 0`. Defaults to `1.0`.
        name: String.

    Raises:
        ValueError: If `value` is not a number above 0, or if the loss is
            learned: it would not be found in here.
    """

    def __init__(self, loss: Any, value: float = 1.0, name: str | None = None):
        super().__init__(loss, name)
        self.value = check_number("initial_value", value, zero_allowed=False)
        if isinstance(self.loss, Hyperparameter):
            raise ValueError(
                "`initial_value` must be 1 where a fixed output has a learned "
                f"loss. Received: initial_value={self.value} and loss={loss!r} "
                f"of {name!r}. Leave {name!r} out of `fixed`."
            )

    def constrained(self) -> tf.Tensor:
        return tf.constant(self.value)

    def get_config(self) -> dict:
        return super().get_config() | {"value": self.value}


@register("output_weight")
class LearnableOutputWeight(Hyperparameter, WeightedLoss):
    """The loss of one output, times a learned weight.

    `LearnableOutputWeights` makes one for each output.

    Args:
        loss: Keras loss, its name, or a function of `(y, y_pred)`. Defaults to
            `"mse"`.
        initial_value: Float in `(0, max_value)`: the weight at first. Defaults
            to `1.0`.
        max_value: Float. Defaults to `10.0`.
        name: String, that of the output.

    Raises:
        ValueError: If a number is out of range, or if `loss` is unknown.

    Example:

    ```python
    import keras_hposgld as hs

    loss = hs.losses.LearnableOutputWeight("mse", 0.5, name="color")
    print(loss([[1.0], [2.0]], [[1.5], [2.0]]), loss.hyperparameter_values())
    ```
    """

    granularity = "output loss"
    needs_outer_loss = True  # else it would learn to be small

    def __init__(
        self,
        loss: Any = "mse",
        initial_value: float = 1.0,
        max_value: float = 10.0,
        name: str | None = None,
    ):
        super().__init__(loss, name)
        self.max_value = check_number(
            "max_value", max_value, zero_allowed=False
        )
        start = bounded_start("initial_value", initial_value, self.max_value)
        self.initial_value = float(initial_value)
        self.variable = unconstrained_variable(
            start, "output_weight", self.name
        )

    def constrained(self) -> tf.Tensor:
        return bounded_value(self.variable, self.max_value)

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        more = [v for o in self._within for v in o.hyperparameter_variables]
        return [self.variable, *more]

    def hyperparameter_values(self) -> dict:
        values = {self.variable.path: self.constrained()}
        for owner in self._within:
            values |= owner.hyperparameter_values()
        return values

    def saved_apart(self) -> list[tuple[str, keras.Variable]]:
        """The variables, since Keras saves a loss by its config alone."""
        return [("loss", v) for v in self.hyperparameter_variables]

    @property
    def _within(self) -> list[Hyperparameter]:
        """The loss, if that is learned as well."""
        return [self.loss] if isinstance(self.loss, Hyperparameter) else []

    def get_config(self) -> dict:
        return super().get_config() | {
            "initial_value": self.initial_value,
            "max_value": self.max_value,
            "learned": np.asarray(self.variable.value, "float64").tolist(),
        }

    @classmethod
    def from_config(cls, config: dict) -> "LearnableOutputWeight":
        config = dict(config)
        learned = config.pop("learned")
        loss = super().from_config(config)
        loss.variable.assign(learned)
        return loss
