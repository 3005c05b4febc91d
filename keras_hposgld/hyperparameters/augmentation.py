"""Learned augmentation: random transformations whose ranges are learned."""

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from keras_hposgld.hyperparameters.hyperparameter import all_layers
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable

TRANSFORMATIONS = ("rotation", "translation", "scale", "shear")


@keras.saving.register_keras_serializable(package="keras_hposgld")
class LearnableAffine(Hyperparameter, keras.layers.Layer):
    """Transforms images at random, within ranges that are learned.

    In training each image is rotated, scaled, sheared and shifted by amounts
    that are uniform between minus and plus a range (the logarithm, for the
    scale). An amount is its range times a random number, so the inner objective
    is differentiable by the ranges: they open where the outer data profit from
    the invariance and close where they do not. In inference the images pass as
    they are; `average_predictions` averages over transformations instead.

    Args:
        rotation: Float: the range in degrees at first; `None` (default): no
            rotation.
        translation: Float: a share of height and width; `None` likewise.
        scale: Float: range of the scale's logarithm; `None` likewise.
        shear: Float: a range of displacement by height; `None` likewise.
        max_rotation: Float, bound of the range. Defaults to `180.0`.
        max_translation: Float. Defaults to `0.5`.
        max_scale: Float. Defaults to `1.0`.
        max_shear: Float. Defaults to `1.0`.
        seed: Integer.
        name: String.

    Call arguments:
        images: Tensor `(batch, height, width, channels)`. What comes into a
            picture from outside is zero.
        training: Boolean.

    Raises:
        ValueError: If no range is given, if one is out of bounds, or if the
            inputs are no images.

    Reference:
        Benton, Finzi, Izmailov and Wilson, "Learning Invariances in Neural
        Networks", NeurIPS 2020, who learn ranges without outer data.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    augmentation = hs.layers.LearnableAffine(rotation=10.0, translation=0.05)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            augmentation,
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    print(augmentation.hyperparameter_values())
    assert hs.find_hyperparameters(model) == [augmentation]
    ```
    """

    granularity = "range"

    def __init__(
        self,
        rotation: float | None = None,
        translation: float | None = None,
        scale: float | None = None,
        shear: float | None = None,
        max_rotation: float = 180.0,
        max_translation: float = 0.5,
        max_scale: float = 1.0,
        max_shear: float = 1.0,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name, trainable=False)
        given = (rotation, translation, scale, shear)
        bounds = (max_rotation, max_translation, max_scale, max_shear)
        self.initial = dict(zip(TRANSFORMATIONS, given, strict=True))
        self.bounds = dict(zip(TRANSFORMATIONS, bounds, strict=True))
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.ranges = {
            what: unconstrained_variable(
                bounded_start(what, value, self.bounds[what]), what, self.name
            )
            for what, value in self.initial.items()
            if value is not None
        }
        if not self.ranges:
            raise ValueError(
                "`LearnableAffine` must be given a range to start from. "
                "Received: rotation=None, translation=None, scale=None, "
                "shear=None. Pass, for instance, `rotation=10.0`."
            )
        # See `average_predictions`.
        self.transforms_in_inference = False

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                "`LearnableAffine` takes images (batch, height, width, "
                f"channels). Received: inputs of shape {tuple(input_shape)}."
            )

    def call(self, images, training=False):
        if not training and not self.transforms_in_inference:
            return images
        amounts = self._draw(tf.shape(images)[0])
        height, width = images.shape[1:3]
        pixels = _source_pixels(amounts, height, width)
        moved = tfp.math.batch_interp_regular_nd_grid(
            pixels,
            x_ref_min=[0.0, 0.0],
            x_ref_max=[height - 1.0, width - 1.0],
            y_ref=tf.cast(images, pixels.dtype),
            axis=-3,
            fill_value=0.0,
        )
        return tf.cast(tf.reshape(moved, tf.shape(images)), images.dtype)

    def _draw(self, batch_size):
        """A random amount of each transformation for each image."""
        amounts = {}
        for what in TRANSFORMATIONS:
            number = 2 if what == "translation" else 1
            if what not in self.ranges:
                amounts[what] = tf.zeros([batch_size, number])
                continue
            uniform = keras.random.uniform(
                (batch_size, number), -1.0, 1.0, seed=self.seed_generator
            )
            amounts[what] = self._range(what) * uniform
        return amounts

    def _range(self, what):
        return bounded_value(self.ranges[what], self.bounds[what])

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        return list(self.ranges.values())

    def hyperparameter_values(self) -> dict:
        return {
            variable.path: self._range(what)
            for what, variable in self.ranges.items()
        }

    def get_config(self) -> dict:
        return {
            **self.initial,
            **{f"max_{what}": bound for what, bound in self.bounds.items()},
            "seed": self.seed,
            "name": self.name,
        }


def _source_pixels(amounts, height, width):
    """Where each pixel of the transformed images comes from.

    Returns:
        Tensor `(batch, height * width, 2)`: rows and columns.
    """
    angle = amounts["rotation"][:, 0] * (np.pi / 180.0)
    factor = tf.exp(-amounts["scale"][:, 0])
    shear = amounts["shear"][:, 0]
    cos, sin = factor * tf.cos(angle), factor * tf.sin(angle)
    # The rotation times [[1, shear], [0, 1]]; rows and columns of a picture
    # are the coordinates.
    matrix = tf.stack(
        [
            tf.stack([cos, cos * shear - sin], -1),
            tf.stack([sin, sin * shear + cos], -1),
        ],
        axis=-2,
    )
    center = np.array([height - 1, width - 1], "float32") / 2
    grid = np.stack(np.mgrid[:height, :width], -1).reshape(-1, 2) - center
    shift = amounts["translation"] * np.array([height, width], "float32")
    rotated = tf.einsum("bij,nj->bni", matrix, grid.astype("float32"))
    return rotated + (center + shift)[:, None]


def average_predictions(
    model: keras.Model, images, num_samples: int = 8
) -> tf.Tensor:
    """The mean of a model's predictions over learned transformations.

    Args:
        model: `keras.Model` with `LearnableAffine` layers. All else is in
            inference mode.
        images: Its inputs, one batch.
        num_samples: Integer `>= 1`: transformations of each image. Defaults to
            `8`.

    Returns:
        Tensor shaped like the predictions. Average probabilities, not logits.

    Raises:
        ValueError: If the model has no such layer, or for `num_samples`
            below 1.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            hs.layers.LearnableAffine(rotation=10.0),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    print(hs.layers.average_predictions(model, np.ones((2, 8, 8, 1)), 4))
    ```
    """
    layers = [x for x in all_layers(model) if isinstance(x, LearnableAffine)]
    if not layers or num_samples < 1:
        raise ValueError(
            "`average_predictions` needs a model with a `LearnableAffine` "
            "layer, and `num_samples` of at least 1. Received: "
            f"{len(layers)} such layers, num_samples={num_samples}."
        )
    for layer in layers:
        layer.transforms_in_inference = True
    try:
        samples = [model(images, training=False) for _ in range(num_samples)]
    finally:
        for layer in layers:
            layer.transforms_in_inference = False
    return tf.add_n(samples) / num_samples
