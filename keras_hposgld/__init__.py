"""Learn hyperparameters by gradient while a Keras model trains."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "`keras_hposgld` needs the TensorFlow backend of Keras. "
        f"Received: {keras.backend.backend()!r}. Set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is imported."
    )

from keras_hposgld import callbacks  # noqa: E402
from keras_hposgld import data  # noqa: E402
from keras_hposgld import diagnostics  # noqa: E402
from keras_hposgld import estimators  # noqa: E402
from keras_hposgld import hyperparameters  # noqa: E402
from keras_hposgld import layers  # noqa: E402
from keras_hposgld import losses  # noqa: E402
from keras_hposgld import plotting  # noqa: E402
from keras_hposgld import regularizers  # noqa: E402
from keras_hposgld import samplers  # noqa: E402
from keras_hposgld.bilevel_model import BilevelModel  # noqa: E402
from keras_hposgld.core.gauss_newton import mark_predictions  # noqa: E402
from keras_hposgld.core.problem import BilevelProblem  # noqa: E402
from keras_hposgld.estimators import Estimate  # noqa: E402
from keras_hposgld.estimators import hypergradient  # noqa: E402
from keras_hposgld.hyperparameters.copying import copy_hyperparameters  # noqa: E402
from keras_hposgld.hyperparameters.discovery import find_hyperparameters  # noqa: E402
from keras_hposgld.hyperparameters.example_weights import ExampleWeights  # noqa: E402
from keras_hposgld.hyperparameters.source_weights import SourceWeights  # noqa: E402
from keras_hposgld.meta_model import MetaModel  # noqa: E402
from keras_hposgld.moved import keep_old_paths  # noqa: E402
from keras_hposgld.refit import refit  # noqa: E402
from keras_hposgld.samplers import PSGLD  # noqa: E402
from keras_hposgld.samplers import SGLD  # noqa: E402

keep_old_paths()

__version__ = "0.1.0"

__all__ = [
    "BilevelModel",
    "BilevelProblem",
    "Estimate",
    "ExampleWeights",
    "MetaModel",
    "PSGLD",
    "SGLD",
    "SourceWeights",
    "callbacks",
    "copy_hyperparameters",
    "data",
    "diagnostics",
    "estimators",
    "find_hyperparameters",
    "hypergradient",
    "hyperparameters",
    "layers",
    "losses",
    "mark_predictions",
    "plotting",
    "refit",
    "regularizers",
    "samplers",
]
