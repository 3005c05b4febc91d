"""The small models of the sweep: a dense layer, one layer of Keras's, a head.

The arguments of the layers are those of the table that the tests of second
derivatives use, `tests/core/keras_parts.py`. Below are the layers that it
leaves out, as far as they can stand in a model.
"""

import inspect
import pathlib
import sys
from typing import Any

import keras
import numpy as np

TABLE = pathlib.Path(__file__).parents[2] / "tests" / "core"
sys.path.insert(0, str(TABLE))

import keras_parts  # noqa: E402
from keras_parts import INTEGERS  # noqa: E402
from keras_parts import part  # noqa: E402

WORDS = ["a", "b", "c", "d", "e"]
STRINGS = ([["a", "b"], ["c", "d"]],)

# Their inputs are numbers that nothing is learned before, or strings; or
# they choose by chance which other layers they are.
DATA_LAYERS = {
    "CategoryEncoding": part("CategoryEncoding", *INTEGERS, num_tokens=5),
    "Discretization": part(
        "Discretization", keras_parts.VECTOR, bin_boundaries=[0.3, 0.6]
    ),
    "HashedCrossing": part(
        "HashedCrossing", [[1], [2]], [[3], [4]], num_bins=5
    ),
    "Hashing": part("Hashing", *INTEGERS, num_bins=5),
    "IntegerLookup": part("IntegerLookup", *INTEGERS, vocabulary=[0, 1, 2]),
    # In inference it gives images of the size that they have.
    "RandomCrop": part("RandomCrop", keras_parts.IMAGE, height=6, width=6),
    "RandAugment": part("RandAugment", keras_parts.IMAGE, value_range=(0, 1)),
    "StringLookup": part("StringLookup", *STRINGS, vocabulary=WORDS[:3]),
    "TextVectorization": part(
        "TextVectorization",
        ["a b", "c"],
        vocabulary=WORDS[:3],
        output_sequence_length=2,
    ),
}
LAYERS = keras_parts.LAYERS | DATA_LAYERS
FLOAT32 = keras_parts.FLOAT32 | {"RandAugment"}

# What TensorFlow gives for their derivative is not that of their outputs: they
# round to whole numbers, or TensorFlow has none of `HSVToRGB`, or a wrong one
# of `ImageProjectiveTransformV3`. They get the data as they are.
WITHOUT_DERIVATIVE = {
    *("ContrastLimitedAdaptiveHistogramEqualization", "RandomPosterization"),
    "Discretization",
    *("RandomHue", "RandomSaturation"),
    *("RandAugment", "RandomPerspective", "RandomRotation", "RandomShear"),
    *("RandomTranslation", "RandomZoom"),
}

# What a layer is refused for, by what stands in its error.
REFUSED = {"SpectralNormalization": "assign to a trainable weight"}

UNKNOWN = "not in the table of arguments"
NO_ROW = {
    "AugMix": "chooses by Python's random numbers when it is traced",
    "Equalization": "no model of Keras's own can be made with it: a cycle",
    "FlaxLayer": "made by another library",
    "InputLayer": "stands in every model of the sweep",
    "JaxLayer": "made by another library",
    "Layer": "an abstract base",
    "MaxNumBoundingBoxes": "takes bounding boxes",
    "TFSMLayer": "made by another library",
    "TorchModuleWrapper": "made by another library",
    "Wrapper": "an abstract base",
}


def discovered() -> dict[str, str | None]:
    """Keras's public layers, by one name each.

    Returns:
        Dictionary from the name to why there is no row for it, or to `None`.
        The name of a layer that Keras offers under two is the table's.
    """
    found: dict[type, str] = {}
    for name, value in sorted(vars(keras.layers).items()):
        if inspect.isclass(value) and issubclass(value, keras.Layer):
            if name in LAYERS or value not in found:
                found[value] = name
    return {
        name: NO_ROW.get(name, None if name in LAYERS else UNKNOWN)
        for name in sorted(found.values())
    }


def dtype_of(name: str) -> str:
    """Float64, but where a layer is computed in float32 alone."""
    return "float32" if name in FLOAT32 else "float64"


def is_shape(given: Any) -> bool:
    """Whether a layer's input in the table is a shape, batch first."""
    return isinstance(given, tuple)


def inputs_for(name: str, number: int, rng: np.random.Generator) -> list:
    """Arrays of so many examples, one array for each input of the layer."""
    arrays = []
    for given in LAYERS[name].inputs:
        if is_shape(given):
            x = rng.uniform(0.1, 0.9, size=(number, *given[1:]))
            arrays.append(x.astype(dtype_of(name)))
            continue
        shape = (number, *np.shape(given)[1:])
        drawn = rng.integers(5, size=shape)
        is_text = np.asarray(given).dtype.kind == "U"
        arrays.append(np.array(WORDS)[drawn] if is_text else drawn)
    return arrays


def make_model(name: str) -> keras.Model:
    """A model with one layer of Keras's between two dense ones.

    The first keeps shapes and gives numbers between 0 and 1, which the layers
    for images ask for. It is left out where the input is not real, or where
    TensorFlow has no right derivative of the layer.
    """
    row = LAYERS[name]
    inputs, hidden = [], []
    for given in row.inputs:
        if is_shape(given):
            inputs.append(keras.Input(given[1:]))
        else:
            is_text = np.asarray(given).dtype.kind == "U"
            dtype = "string" if is_text else "int32"
            inputs.append(keras.Input(np.shape(given)[1:], dtype=dtype))
        x = inputs[-1]
        if is_shape(given) and name not in WITHOUT_DERIVATIVE:
            x = keras.layers.Dense(given[-1], "sigmoid")(x)
        hidden.append(x)
    layer = row.make()
    if row.apart or len(hidden) == 1:
        y = layer(*hidden)
    else:
        y = layer(hidden)
    y = keras.tree.flatten(y)[0]
    if not keras.backend.is_float_dtype(y.dtype):
        y = keras.ops.cast(y, keras.config.floatx())
    if None in y.shape[1:]:
        y = keras.layers.GlobalAveragePooling1D()(y)
    y = keras.layers.Flatten()(y)
    # So that one learning rate suits layers of few outputs and of many.
    y = keras.layers.Rescaling(y.shape[-1] ** -0.5)(y)
    y = keras.layers.Dense(1)(y)
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], y)
