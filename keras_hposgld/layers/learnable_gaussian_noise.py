"""Gaussian noise on what enters a layer, whose deviation is learned."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.layers.draws import next_seed
from keras_hposgld.layers.random_layer import RandomLayer
from keras_hposgld.samplers.noise import unit_noise


@register("gaussian_noise")
class LearnableGaussianNoise(RandomLayer):
    """Adds Gaussian noise in training, whose standard deviation is learned.

    In training the output is `x + stddev * z` with z standard normal, anew for
    each entry and call. The inner objective is differentiable by the standard
    deviation. In inference the inputs pass as they are, so that the outer loss
    says how much noise in training pays. A plain `fit` holds it constant.

    `export` puts `keras.layers.GaussianNoise` in its place. That has one
    number: for one per feature the root of their mean square, with a warning.

    Args:
        initial_stddev: Float in `(0, max_stddev)`, in the unit of the inputs.
            Defaults to `0.1`.
        max_stddev: Float above 0 and at most 1, as in Keras's layer. Defaults
            to `1.0`.
        granularity: `"tensor"` (default): one standard deviation, or
            `"input"`: one per feature on the last axis.
        seed: Integer from 0 to 2**31 - 1. `None` (default): a random one.
        **layer_arguments: Those of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Tensor of floating-point numbers, of any rank.
        training: Boolean.

    Raises:
        ValueError: If an argument is out of range, or if inputs are not
            floating-point numbers.

    Reference:
        Bishop, "Training with Noise is Equivalent to Tikhonov Regularization",
        Neural Computation 7, 1995.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    noise = hs.layers.LearnableGaussianNoise(0.1, granularity="input")
    model = keras.Sequential([keras.Input((8,)), noise, keras.layers.Dense(1)])
    assert hs.find_hyperparameters(model) == [noise]
    ```
    """

    def __init__(
        self,
        initial_stddev: float = 0.1,
        max_stddev: float = 1.0,
        granularity: str = "tensor",
        seed: int | None = None,
        **layer_arguments: Any,
    ):
        bound = check_number(
            "max_stddev", max_stddev, zero_allowed=False, maximum=1.0
        )
        super().__init__(
            "stddev",
            initial_stddev,
            bound,
            granularity,
            seed,
            **layer_arguments,
        )

    def disturbed(self, inputs: tf.Tensor) -> tf.Tensor:
        deviation = self.value()
        seed = next_seed(self.seed_generator)
        noise = unit_noise(tf.shape(inputs), deviation.dtype, "gaussian", seed)
        return inputs + tf.cast(deviation * noise, inputs.dtype)

    def exported(self) -> keras.layers.Layer:
        return keras.layers.GaussianNoise(
            self.exported_value("root of the mean square", 2.0),
            seed=self.seed,
            name=self.name,
            dtype=self.dtype_policy,
        )
