"""What layers share that disturb their inputs by an amount that is learned."""

import abc
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_known
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable

GRANULARITIES = ("tensor", "input")


class RandomLayer(Hyperparameter, keras.layers.Layer):
    """Base of layers with one learned amount of noise, or one per feature.

    In inference the inputs pass as they are.

    Args:
        what: String, what the amount is called: the arguments of a subclass
            are `initial_{what}` and `max_{what}`.
        initial_value: Float in `(0, max_value)`.
        max_value: Float, above 0.
        granularity: `"tensor"` or `"input"`.
        seed: Integer from 0 to 2**31 - 1, or `None`.
        **layer_arguments: Those of `keras.layers.Layer`.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        what: str,
        initial_value: float,
        max_value: float,
        granularity: str,
        seed: int | None,
        **layer_arguments: Any,
    ):
        super().__init__(**layer_arguments)
        self.what, self.max_value = what, max_value
        self._start = bounded_start(f"initial_{what}", initial_value, max_value)
        self.initial_value = float(initial_value)
        self.granularity = check_known(
            "granularity", granularity, GRANULARITIES
        )
        if seed is not None:
            seed = check_count("seed", seed, 0, 2**31 - 1)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.unconstrained: keras.Variable | None = None
        self.supports_masking = True

    @abc.abstractmethod
    def disturbed(self, inputs: tf.Tensor) -> tf.Tensor:
        """The inputs in training, with noise."""

    def build(self, input_shape):
        shape = () if self.granularity == "tensor" else input_shape[-1:]
        if None in shape:
            raise ValueError(
                '`granularity="input"` needs a last axis of fixed size. '
                f"Received: inputs of shape {tuple(input_shape)}. Use "
                'granularity="tensor".'
            )
        self.unconstrained = unconstrained_variable(
            np.broadcast_to(self._start, shape), self.what, self.name
        )

    def call(self, inputs, training=False):
        if not keras.backend.is_float_dtype(inputs.dtype):
            raise ValueError(
                f"`{type(self).__name__}` takes floating-point numbers. "
                f"Received: inputs of dtype {inputs.dtype}. Cast them before."
            )
        return self.disturbed(inputs) if training else inputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def value(self) -> tf.Tensor:
        """The amount: a scalar, or `(features,)`."""
        return bounded_value(self.unconstrained, self.max_value)

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        return [] if self.unconstrained is None else [self.unconstrained]

    def hyperparameter_values(self) -> dict:
        return {v.path: self.value() for v in self.hyperparameter_variables}

    def exported_value(self, mean: str, power: float) -> float:
        """The one amount that a layer of Keras's can have.

        Args:
            mean: String, what is taken of many amounts, for the warning.
            power: Float: the mean is that of the amounts to this power.
        """
        values = np.asarray(self.value(), "float64")
        one = float(np.mean(values**power) ** (1.0 / power))
        if values.ndim:
            warnings.warn(
                f"The exported layer {self.name!r} has one {self.what} for all "
                f"features, {one:.3g}, the {mean} of what was learned: from "
                f"{values.min():.3g} to {values.max():.3g}. Keras's layer "
                "takes one number.",
                stacklevel=2,
            )
        return one

    def get_config(self) -> dict:
        return super().get_config() | {
            f"initial_{self.what}": self.initial_value,
            f"max_{self.what}": self.max_value,
            "granularity": self.granularity,
            "seed": self.seed,
        }
