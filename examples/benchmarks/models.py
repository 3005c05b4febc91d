"""Models and data that the benchmarks share."""

import keras
import numpy as np

SIZES = {
    "mlp": "670 k weights",
    "cnn": "225 k weights",
    "resnet20": "0.27 M weights, 32x32x3",
    "vit": "0.8 M weights, 32x32x3",
}


def data_for(name, batch_size, quick=False):
    """One batch of random images and labels."""
    rng = np.random.default_rng(0)
    side, channels = (28, 1) if name in ("mlp", "cnn") else (32, 3)
    if quick:
        side = 8
    shape = (batch_size, side, side, channels)
    x = rng.normal(size=shape).astype("float32")
    return x, rng.integers(0, 10, batch_size)


def make_model(name, image_shape, regularizer=lambda: None, quick=False):
    """A classifier with ten logits; each kernel has a regularizer of its own.

    Args:
        name: A key of `SIZES`.
        image_shape: Tuple.
        regularizer: Function without arguments.
        quick: Whether to make a tiny one.
    """
    keras.utils.set_random_seed(0)
    inputs = keras.Input(image_shape)
    build = {"mlp": _mlp, "cnn": _cnn, "resnet20": _resnet20, "vit": _vit}[name]
    outputs = build(inputs, regularizer, quick)
    return keras.Model(inputs, outputs)


def _dense(units, regularizer, activation=None):
    return keras.layers.Dense(
        units, activation, kernel_regularizer=regularizer()
    )


def _mlp(x, regularizer, quick):
    x = keras.layers.Flatten()(x)
    for _ in range(2):
        x = _dense(16 if quick else 512, regularizer, "relu")(x)
    return _dense(10, regularizer)(x)


def _convolution(x, filters, regularizer, strides=1):
    return keras.layers.Conv2D(
        filters,
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_regularizer=regularizer(),
    )(x)


def _cnn(x, regularizer, quick):
    for filters in (2, 2) if quick else (32, 64):
        x = _convolution(x, filters, regularizer)
        x = keras.layers.Activation("relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Flatten()(x)
    x = _dense(8 if quick else 64, regularizer, "relu")(x)
    return _dense(10, regularizer)(x)


def _resnet20(x, regularizer, quick):
    """He et al., 2016, section 4.2, with n = 3."""

    def normalized(x):
        return keras.layers.BatchNormalization()(x)

    def activated(x):
        return keras.layers.Activation("relu")(x)

    blocks = 1 if quick else 3
    x = activated(normalized(_convolution(x, 16, regularizer)))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            shortcut = x
            if strides == 2:
                shortcut = keras.layers.AveragePooling2D(2)(x)
                shortcut = keras.layers.Concatenate()(
                    [shortcut, keras.ops.zeros_like(shortcut)]
                )
            x = _convolution(x, filters, regularizer, strides)
            x = _convolution(activated(normalized(x)), filters, regularizer)
            x = activated(keras.layers.Add()([normalized(x), shortcut]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return _dense(10, regularizer)(x)


def _vit(x, regularizer, quick):
    """A vision transformer: patches of 4x4, pre-normalization."""
    width, heads, depth = (8, 2, 1) if quick else (128, 4, 4)
    x = keras.layers.Conv2D(
        width, 4, strides=4, kernel_regularizer=regularizer()
    )(x)
    x = keras.layers.Reshape((-1, width))(x)
    for _ in range(depth):
        y = keras.layers.LayerNormalization()(x)
        y = keras.layers.MultiHeadAttention(
            heads, width // heads, kernel_regularizer=regularizer()
        )(y, y)
        x = keras.layers.Add()([x, y])
        y = keras.layers.LayerNormalization()(x)
        y = _dense(4 * width, regularizer, "gelu")(y)
        y = _dense(width, regularizer)(y)
        x = keras.layers.Add()([x, y])
    x = keras.layers.GlobalAveragePooling1D()(
        keras.layers.LayerNormalization()(x)
    )
    return _dense(10, regularizer)(x)
