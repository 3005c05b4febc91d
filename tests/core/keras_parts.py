"""Keras's layers, activations and losses, each made with small arguments.

The names are those of Keras's own lists. What a table below lacks makes
`test_keras_parts` fail, so that a part which is new in Keras is noticed.
"""

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

L = keras.layers

# Shapes of inputs, batch first.
VECTOR, SEQUENCE, SIGNAL = (4, 4), (2, 5, 4), (2, 24, 1)
IMAGE, VOLUME = (2, 6, 6, 3), (2, 4, 4, 4, 2)
PLACES = {1: (2, 6, 3), 2: IMAGE, 3: VOLUME}
FILMS = {1: (2, 3, 5, 2), 2: (1, 3, 4, 4, 2), 3: (1, 2, 3, 3, 3, 1)}
INTEGERS = ([[0, 2], [2, 4]],)


class Part(NamedTuple):
    """A layer.

    Attributes:
        make: Function that makes it.
        inputs: Shapes of its inputs, or `INTEGERS`.
        apart: Whether the inputs are arguments of their own, not one list.
    """

    make: Callable
    inputs: tuple
    apart: bool = False


def part(name, *inputs, apart=False, **arguments):
    """A layer of Keras's by its name; `None` where this Keras has none."""
    layer = getattr(L, name, None)
    if layer is None:
        return None
    return Part(functools.partial(layer, **arguments), inputs, apart)


@keras.saving.register_keras_serializable("keras_parts")
def squared(x):
    """The function of a `Lambda`, which is saved by its name."""
    return x * x


LAYERS = {
    "ActivityRegularization": part("ActivityRegularization", VECTOR, l2=0.1),
    "Activation": part("Activation", VECTOR, activation="tanh"),
    "AdditiveAttention": part("AdditiveAttention", SEQUENCE, SEQUENCE),
    "AlphaDropout": part("AlphaDropout", VECTOR, rate=0.3),
    "Attention": part("Attention", SEQUENCE, SEQUENCE, use_scale=True),
    "BatchNormalization": part("BatchNormalization", VECTOR),
    "Bidirectional": Part(lambda: L.Bidirectional(L.GRU(2)), (SEQUENCE,)),
    "CenterCrop": part("CenterCrop", IMAGE, height=3, width=4),
    "Dense": part("Dense", VECTOR, units=2),
    "Dot": part("Dot", VECTOR, VECTOR, axes=-1, normalize=True),
    "Dropout": part("Dropout", VECTOR, rate=0.3),
    "ELU": part("ELU", VECTOR, alpha=0.7),
    "EinsumDense": part(
        "EinsumDense", SEQUENCE, equation="abc,cd->abd", output_shape=(None, 2)
    ),
    "Embedding": part("Embedding", *INTEGERS, input_dim=5, output_dim=2),
    "Flatten": part("Flatten", SEQUENCE),
    "GRU": part("GRU", SEQUENCE, units=2),
    "GRUCell": Part(lambda: L.RNN(L.GRUCell(2)), (SEQUENCE,)),
    "GaussianDropout": part("GaussianDropout", VECTOR, rate=0.3),
    "GaussianNoise": part("GaussianNoise", VECTOR, stddev=0.3),
    "GroupNormalization": part("GroupNormalization", VECTOR, groups=2),
    "GroupQueryAttention": part(
        "GroupQueryAttention",
        SEQUENCE,
        SEQUENCE,
        apart=True,
        head_dim=2,
        num_query_heads=4,
        num_key_value_heads=2,
    ),
    "Identity": part("Identity", VECTOR),
    "LSTM": part("LSTM", SEQUENCE, units=2),
    "LSTMCell": Part(lambda: L.RNN(L.LSTMCell(2)), (SEQUENCE,)),
    "Lambda": part("Lambda", VECTOR, function=squared),
    "LayerNormalization": part("LayerNormalization", VECTOR),
    "LeakyReLU": part("LeakyReLU", VECTOR),
    "Masking": part("Masking", SEQUENCE),
    "MelSpectrogram": part(
        "MelSpectrogram",
        SIGNAL[:2],
        num_mel_bins=4,
        fft_length=8,
        sequence_stride=4,
    ),
    "MultiHeadAttention": part(
        "MultiHeadAttention",
        SEQUENCE,
        SEQUENCE,
        apart=True,
        num_heads=2,
        key_dim=2,
    ),
    "Normalization": part("Normalization", VECTOR, mean=0.3, variance=2.0),
    "PReLU": part("PReLU", VECTOR, alpha_initializer="ones"),
    "Permute": part("Permute", SEQUENCE, dims=(2, 1)),
    "Pipeline": Part(lambda: L.Pipeline([L.Rescaling(2.0)]), (VECTOR,)),
    "RMSNormalization": part("RMSNormalization", VECTOR),
    "RNN": Part(lambda: L.RNN(L.SimpleRNNCell(2)), (SEQUENCE,)),
    "ReLU": part("ReLU", VECTOR, negative_slope=0.1),
    "RepeatVector": part("RepeatVector", VECTOR, n=2),
    "Rescaling": part("Rescaling", VECTOR, scale=2.0, offset=0.1),
    "Reshape": part("Reshape", VECTOR, target_shape=(2, 2)),
    "Resizing": part("Resizing", IMAGE, height=4, width=9),
    "ReversibleEmbedding": part(
        "ReversibleEmbedding", *INTEGERS, input_dim=5, output_dim=2
    ),
    "STFTSpectrogram": part(
        "STFTSpectrogram",
        SIGNAL,
        mode="real",
        frame_length=8,
        frame_step=4,
        fft_length=8,
    ),
    "SimpleRNN": part("SimpleRNN", SEQUENCE, units=2),
    "SimpleRNNCell": Part(lambda: L.RNN(L.SimpleRNNCell(2)), (SEQUENCE,)),
    "Softmax": part("Softmax", VECTOR),
    "SpectralNormalization": Part(
        lambda: L.SpectralNormalization(L.Dense(2)), (VECTOR,)
    ),
    "StackedRNNCells": Part(
        lambda: L.RNN(L.StackedRNNCells([L.LSTMCell(2), L.SimpleRNNCell(2)])),
        (SEQUENCE,),
    ),
    "TimeDistributed": Part(lambda: L.TimeDistributed(L.Dense(2)), (SEQUENCE,)),
    "UnitNormalization": part("UnitNormalization", VECTOR),
}
for name in (
    "Add",
    "Average",
    "Concatenate",
    "Maximum",
    "Minimum",
    "Multiply",
    "Subtract",
):
    LAYERS[name] = part(name, VECTOR, VECTOR)
for rank in PLACES:
    for name, arguments in {
        f"AdaptiveAveragePooling{rank}D": dict(output_size=2),
        f"AdaptiveMaxPooling{rank}D": dict(output_size=2),
        f"AveragePooling{rank}D": dict(pool_size=2),
        f"Conv{rank}D": dict(filters=2, kernel_size=3),
        f"Conv{rank}DTranspose": dict(filters=2, kernel_size=3, strides=2),
        f"Cropping{rank}D": dict(cropping=1),
        f"GlobalAveragePooling{rank}D": dict(),
        f"GlobalMaxPooling{rank}D": dict(),
        f"MaxPooling{rank}D": dict(pool_size=2),
        f"SpatialDropout{rank}D": dict(rate=0.3),
        f"UpSampling{rank}D": dict(size=2),
        f"ZeroPadding{rank}D": dict(padding=1),
    }.items():
        LAYERS[name] = part(name, PLACES[rank], **arguments)
    name = f"ConvLSTM{rank}D"
    LAYERS[name] = part(name, FILMS[rank], filters=2, kernel_size=3)
for rank in (1, 2):
    for name, arguments in {
        f"DepthwiseConv{rank}D": dict(depth_multiplier=2),
        f"SeparableConv{rank}D": dict(filters=2),
    }.items():
        LAYERS[name] = part(name, PLACES[rank], kernel_size=3, **arguments)

# Layers for the data. They have no weights, but may stand behind some.
IN_RANGE = dict(value_range=(0, 1))
WITH_FACTOR = dict(value_range=(0, 1), factor=0.4)
AUGMENTATIONS = {
    "AutoContrast": IN_RANGE,
    "ContrastLimitedAdaptiveHistogramEqualization": IN_RANGE
    | dict(tile_grid_size=(2, 2)),
    "CutMix": {},
    "Equalization": IN_RANGE,
    "MixUp": {},
    "RandomBrightness": WITH_FACTOR,
    "RandomColorDegeneration": WITH_FACTOR,
    "RandomColorJitter": IN_RANGE | dict(contrast_factor=0.3),
    "RandomContrast": WITH_FACTOR,
    "RandomCrop": dict(height=4, width=3),
    "RandomElasticTransform": IN_RANGE,
    "RandomErasing": IN_RANGE,
    "RandomFlip": {},
    "RandomGaussianBlur": IN_RANGE,
    "RandomGrayscale": {},
    "RandomHue": WITH_FACTOR,
    "RandomInvert": IN_RANGE,
    "RandomPerspective": {},
    "RandomPosterization": IN_RANGE | dict(factor=4),
    "RandomRotation": dict(factor=0.2),
    "RandomSaturation": WITH_FACTOR,
    "RandomSharpness": WITH_FACTOR,
    "RandomShear": dict(x_factor=(0.1, 0.3), y_factor=(0.1, 0.3)),
    "RandomTranslation": dict(height_factor=0.3, width_factor=0.3),
    "RandomZoom": dict(height_factor=0.3, width_factor=0.3),
    "Solarization": IN_RANGE,
}
for name, arguments in AUGMENTATIONS.items():
    LAYERS[name] = part(name, IMAGE, **arguments)

# Not asked for: chains of the layers above, chosen anew at each call; made by
# another library; nothing by themselves; integers or
# strings in or out.
LEFT_OUT = {
    *("AugMix", "RandAugment"),
    *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    *("InputLayer", "Layer", "Wrapper"),
    *("CategoryEncoding", "Discretization", "HashedCrossing", "Hashing"),
    *("IntegerLookup", "MaxNumBoundingBoxes", "StringLookup"),
    "TextVectorization",
}

# Other arguments, which lead to other operations.
VARIANTS = {
    "average pooling, padded": part(
        "AveragePooling2D", IMAGE, pool_size=3, strides=2, padding="same"
    ),
    "max pooling, overlapping": part(
        "MaxPooling2D", IMAGE, pool_size=3, strides=2
    ),
    "normalization of images": part("BatchNormalization", IMAGE),
}
for name in ("bicubic", "lanczos3", "lanczos5", "nearest"):
    VARIANTS[f"Resizing, {name}"] = part(
        "Resizing", IMAGE, height=4, width=9, interpolation=name
    )
for name in ("bilinear", "bicubic", "lanczos3", "lanczos5"):
    VARIANTS[f"UpSampling2D, {name}"] = part(
        "UpSampling2D", IMAGE, size=2, interpolation=name
    )

if "antialias" in inspect.signature(L.Resizing).parameters:
    VARIANTS["Resizing, antialias"] = part(
        "Resizing", IMAGE, height=4, width=9, antialias=True
    )

# Older versions of Keras have fewer.
LAYERS = {name: part for name, part in LAYERS.items() if part is not None}
VARIANTS = {name: part for name, part in VARIANTS.items() if part is not None}

# TensorFlow computes these in float32, or has no other kernel.
FLOAT32 = {
    *("AdaptiveAveragePooling3D", "AdaptiveMaxPooling3D"),
    *("AveragePooling3D", "MaxPooling3D", "MelSpectrogram"),
    *("RandomPerspective", "RandomRotation", "RandomShear"),
    *("RandomTranslation", "RandomZoom", "Resizing"),
    *(name for name in VARIANTS if name.startswith(("Res", "UpS"))),
}

ACTIVATIONS = {
    name: value
    for name, value in vars(keras.activations).items()
    if inspect.isfunction(value)
    and name not in ("deserialize", "get", "serialize")
}

ACTIVATIONS["threshold"] = functools.partial(
    keras.activations.threshold, threshold=0.1, default_value=0.3
)

# What a loss is given for targets; its predictions are probabilities.
TARGETS = {
    "real": lambda rng: rng.uniform(0.1, 0.9, size=VECTOR),
    "binary": lambda rng: rng.integers(2, size=VECTOR),
    "signs": lambda rng: 2 * rng.integers(2, size=VECTOR) - 1,
    "one-hot": lambda rng: np.eye(4)[[0, 3, 1, 2]],
    "classes": lambda rng: np.array([0, 3, 0, 3]),
}
LOSSES = {
    "BinaryCrossentropy": "binary",
    "BinaryFocalCrossentropy": "binary",
    "CategoricalCrossentropy": "one-hot",
    "CategoricalFocalCrossentropy": "one-hot",
    "CategoricalGeneralizedCrossEntropy": "classes",
    "CategoricalHinge": "one-hot",
    "Circle": "classes",
    "CosineSimilarity": "real",
    "Dice": "real",
    "Hinge": "signs",
    "Huber": "real",
    "KLDivergence": "real",
    "LogCosh": "real",
    "MeanAbsoluteError": "real",
    "MeanAbsolutePercentageError": "real",
    "MeanSquaredError": "real",
    "MeanSquaredLogarithmicError": "real",
    "Poisson": "real",
    "SparseCategoricalCrossentropy": "classes",
    "SquaredHinge": "signs",
    "Tversky": "real",
}
LOSSES = {
    name: kind for name, kind in LOSSES.items() if hasattr(keras.losses, name)
}
LOSSES_LEFT_OUT = {"Loss", "CTC"}  # CTC: see test_missing_derivatives


def layer_objective(made, rng):
    """A function of the weights and the inputs of a layer, and where.

    Returns:
        The function of a list of tensors to a scalar, and that list.
    """
    layer = made.make()
    shapes = [] if made.inputs == INTEGERS else made.inputs
    inputs = [tf.constant(rng.uniform(0.1, 0.9, size=s)) for s in shapes]
    inputs = [tf.cast(x, keras.config.floatx()) for x in inputs]

    def arguments(inputs):
        if made.apart:
            return inputs
        given = inputs or [tf.constant(INTEGERS[0])]
        return [given[0] if len(given) == 1 else given]

    layer(*arguments(inputs))
    weights = [
        v + tf.cast(0.1 * rng.normal(size=v.shape), v.dtype)
        for v in layer.trainable_variables
    ]
    # Held, that random numbers be the same at each point.
    others = [tf.convert_to_tensor(v) for v in layer.non_trainable_variables]
    takes_training = "training" in inspect.signature(layer.call).parameters
    training = {"training": True} if takes_training else {}
    number = len(weights)

    def outputs(params):
        y, _ = layer.stateless_call(
            params[:number], others, *arguments(params[number:]), **training
        )
        return tf.nest.flatten(y)[0]

    return cubed(outputs, [*weights, *inputs], rng)


def cubed(function, params, rng):
    """A scalar whose derivatives show all entries of what a function gives."""
    y = function(params)
    factors = tf.cast(rng.normal(size=y.shape), y.dtype)
    return lambda params: tf.reduce_sum(factors * function(params) ** 3), params
