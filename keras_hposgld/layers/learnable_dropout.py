"""Dropout whose rate is learned.

The mask of dropout jumps, so that the loss of a batch has no derivative by the
rate. Two laws take its place whose draws move with the rate. Each is the input
times a random number of mean 1 and variance rate / (1 - rate), which are those
of dropout, exactly.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.layers.draws import next_seed
from keras_hposgld.layers.draws import uniform
from keras_hposgld.layers.random_layer import RandomLayer
from keras_hposgld.samplers.noise import unit_noise

RELAXATIONS = ("clipped", "gaussian")
# A rate. Draws have 24 bits: below it none falls where there is a derivative.
LEAST = 1e-7


@register("dropout")
class LearnableDropout(RandomLayer):
    """Dropout whose rate is learned.

    In training each entry of the inputs is multiplied by a random number of
    mean 1 and variance `rate / (1 - rate)`, as in dropout. Its draws move with
    the rate, so the inner objective is differentiable by it:

    * `relaxation="gaussian"`: Gaussian dropout. No other law of that mean and
      variance has a derivative of less noise.
    * `relaxation="clipped"`: a mask between 0 and 1, over its mean
      `k = 2 (1 - rate) / (2 + rate)`. It is 1 with probability `k**2`, 0 with
      `(1 - k)**2`, else uniform: nearer to dropout, with more noise.

    In inference the inputs pass as they are, so that the outer loss says which
    rate in training pays. A plain `fit` holds the rate constant.

    `export` puts `keras.layers.Dropout` in its place. That has one number: for
    a rate per feature the mean of the rates, with a warning.

    Args:
        initial_rate: Float in `(0, max_rate)`. Defaults to `0.2`.
        max_rate: Float above 0 and below 1. Defaults to `0.9`.
        granularity: `"tensor"` (default): one rate, or `"input"`: one per
            feature on the last axis.
        relaxation: `"gaussian"` (default) or `"clipped"`.
        noise_shape: Sequence of integers and `None`, as in
            `keras.layers.Dropout`: the shape of the mask, where `None` is the
            size of the inputs. `None` (default): that of the inputs.
        seed: Integer from 0 to 2**31 - 1. `None` (default): a random one.
        **layer_arguments: Those of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of floating-point numbers, of any rank.
        training: Boolean.

    Raises:
        ValueError: If an argument is out of range, or if inputs are not
            floating-point numbers or of another rank than `noise_shape`.

    Reference:
        Srivastava et al., "Dropout", JMLR 15, 2014, section 10 for Gaussian
        dropout. Gal, Hron and Kendall, "Concrete Dropout", NeurIPS 2017, learn
        the rate by another relaxation, without outer data. `docs/dropout.md`
        compares the laws.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    dropout = hs.layers.LearnableDropout(0.3)
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "relu"),
            dropout,
            keras.layers.Dense(1),
        ]
    )
    print(dropout.hyperparameter_values())
    assert hs.find_hyperparameters(model) == [dropout]
    ```
    """

    def __init__(
        self,
        initial_rate: float = 0.2,
        max_rate: float = 0.9,
        granularity: str = "tensor",
        relaxation: str = "gaussian",
        noise_shape: Sequence | None = None,
        seed: int | None = None,
        **layer_arguments: Any,
    ):
        bound = check_number(
            "max_rate", max_rate, zero_allowed=False, below=1.0
        )
        super().__init__(
            "rate", initial_rate, bound, granularity, seed, **layer_arguments
        )
        self.relaxation = check_known("relaxation", relaxation, RELAXATIONS)
        self.noise_shape = _checked_shape(noise_shape)

    def build(self, input_shape):
        super().build(input_shape)
        given = self.noise_shape
        if given is not None and len(given) != len(input_shape):
            raise ValueError(
                "`noise_shape` must have an entry for each axis of the inputs. "
                f"Received: noise_shape={given}, inputs of shape "
                f"{tuple(input_shape)}. Use None where the mask has the size "
                "of the inputs."
            )

    def disturbed(self, inputs: tf.Tensor) -> tf.Tensor:
        factor = self._factor(self._shape_of_noise(inputs))
        return inputs * tf.cast(factor, inputs.dtype)

    def _factor(self, shape):
        """Random numbers of mean 1 and variance rate / (1 - rate)."""
        rate = tf.maximum(self.value(), LEAST)
        seed = next_seed(self.seed_generator)
        if self.relaxation == "gaussian":
            noise = unit_noise(shape, rate.dtype, "gaussian", seed)
            return 1.0 + tf.sqrt(rate / (1.0 - rate)) * noise
        return clipped(rate, uniform(shape, rate.dtype, seed))

    def _shape_of_noise(self, inputs):
        shape = tf.shape(inputs)
        if self.noise_shape is None:
            return shape
        return [
            shape[axis] if size is None else size
            for axis, size in enumerate(self.noise_shape)
        ]

    def exported(self) -> keras.layers.Layer:
        return keras.layers.Dropout(
            self.exported_value("mean", 1.0),
            noise_shape=self.noise_shape,
            seed=self.seed,
            name=self.name,
            dtype=self.dtype_policy,
        )

    def get_config(self) -> dict:
        return super().get_config() | {
            "relaxation": self.relaxation,
            "noise_shape": self.noise_shape,
        }


def clipped(rate: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Masks that are linear in the rate between dropped and kept.

    Of mean 1 and variance rate / (1 - rate): with k the mean of the mask, its
    mean square is `k**2 + 2 k (1 - k) / 3`, and over `k**2` that is
    `1 / (1 - rate)`. For any loss, the expected derivative by k of one entry,
    where the ramp stays, is the difference of the loss between kept and
    dropped: that of dropout.

    Args:
        rate: Tensor in `(0, 1)`.
        draws: Tensor, uniform between 0 and 1, that `rate` broadcasts against.
    """
    keep = 2.0 * (1.0 - rate) / (2.0 + rate)
    drop = 1.0 - keep
    mask = (1.0 - drop**2 - draws) / (2.0 * keep * drop)
    return tf.clip_by_value(mask, 0.0, 1.0) / keep


def _checked_shape(noise_shape):
    """A noise shape as a tuple of integers and `None`."""
    if noise_shape is None:
        return None
    if isinstance(noise_shape, str) or not isinstance(noise_shape, Sequence):
        raise ValueError(
            "`noise_shape` must be a tuple of integers and None. "
            f"Received: noise_shape={noise_shape!r}."
        )
    return tuple(
        size if size is None else check_count("noise_shape", size, 1)
        for size in noise_shape
    )
