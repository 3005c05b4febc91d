"""Learned augmentation: random transformations whose ranges are learned."""

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_number
from keras_hposgld.core.checks import check_seed
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable

TRANSFORMATIONS = ("rotation", "translation", "scale", "shear")


@register("affine")
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
            picture from outside is zero; in between, pixels are interpolated
            linearly, so the result is continuous in the amounts.
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
        self.bounds = {
            what: check_number(f"max_{what}", bound, zero_allowed=False)
            for what, bound in zip(TRANSFORMATIONS, bounds, strict=True)
        }
        self.seed = None if seed is None else check_seed("seed", seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
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
        if None in tuple(input_shape)[1:]:
            raise ValueError(
                "`LearnableAffine` takes images of a fixed size. Received: "
                f"inputs of shape {tuple(input_shape)}. Resize them before."
            )

    def call(self, images, training=False):
        if not training and not self.transforms_in_inference:
            return images
        amounts = self._draw(tf.shape(images)[0])
        rows, columns = _source_pixels(amounts, *images.shape[1:3])
        moved = _interpolate(tf.cast(images, rows.dtype), rows, columns)
        return tf.cast(moved, images.dtype)

    def _draw(self, batch_size):
        """A random amount of each transformation for each image."""
        amounts = {}
        for what in TRANSFORMATIONS:
            number = 2 if what == "translation" else 1
            if what not in self.ranges:
                amounts[what] = tf.zeros(
                    [batch_size, number], keras.config.floatx()
                )
                continue
            seed = tf.cast(self.seed_generator.next(), "int32")
            uniform = _uniform((batch_size, number), seed)
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


def _uniform(shape, seed):
    """Numbers between -1 and 1, the same ones under any compiler.

    Only raw random integers are the same everywhere.
    """
    words = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    return tf.cast(words, keras.config.floatx()) / 2**31


def _source_pixels(amounts, height, width):
    """Where each pixel of the transformed images comes from.

    Returns:
        Two tensors `(batch, height * width)`: rows and columns.
    """
    dtype = amounts["rotation"].dtype
    angle = amounts["rotation"] * (np.pi / 180.0)
    factor = tf.exp(-amounts["scale"])
    shear = amounts["shear"]
    cos, sin = factor * tf.cos(angle), factor * tf.sin(angle)
    center = np.array([height - 1, width - 1]) / 2
    row, column = np.mgrid[:height, :width].reshape(2, -1) - center[:, None]
    shift = amounts["translation"] * tf.constant([height, width], dtype)
    row, column = tf.constant(row, dtype), tf.constant(column, dtype)
    # The matrix is a rotation times [[1, shear], [0, 1]], in the coordinates
    # (row, column).
    return (
        cos * row + (cos * shear - sin) * column + center[0] + shift[:, :1],
        sin * row + (sin * shear + cos) * column + center[1] + shift[:, 1:],
    )


def _interpolate(images, rows, columns):
    """Images at points between their pixels, bilinearly; zero outside.

    In a cell between four pixels the image is a polynomial,
    `p + r * p_r + c * p_c + r * c * p_rc` with `r` and `c` from 0 to 1. Its
    four coefficients lie side by side, so that one gather fetches them and the
    derivative by the points is elementwise: no scatter.

    Args:
        images: Tensor `(batch, height, width, channels)`.
        rows: Tensor `(batch, height * width)`.
        columns: Likewise.
    """
    _, height, width, channels = images.shape
    # A frame of zeros, over which the images fade out: cells -1 to height - 1.
    framed = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    here, below = framed[:, :-1, :-1], framed[:, 1:, :-1]
    right, across = framed[:, :-1, 1:], framed[:, 1:, 1:]
    coefficients = tf.concat(
        [here, below - here, right - here, here - below - right + across], -1
    )
    coefficients = tf.reshape(
        coefficients, [-1, (height + 1) * (width + 1), 4 * channels]
    )
    rows = tf.clip_by_value(rows + 1.0, 0.0, height + 1.0)
    columns = tf.clip_by_value(columns + 1.0, 0.0, width + 1.0)
    row = tf.minimum(tf.cast(rows, "int32"), height)
    column = tf.minimum(tf.cast(columns, "int32"), width)
    cell = tf.gather(coefficients, row * (width + 1) + column, batch_dims=1)
    p, p_r, p_c, p_rc = tf.split(cell, 4, axis=-1)
    r = (rows - tf.cast(row, rows.dtype))[..., None]
    c = (columns - tf.cast(column, rows.dtype))[..., None]
    moved = p + r * p_r + c * (p_c + r * p_rc)
    return tf.reshape(moved, tf.shape(images))
