"""Samplers: the step of the inner chain, an axis of its own."""

from keras_hposgld.samplers.auto_sgld import AutoSGLD
from keras_hposgld.samplers.from_keras import from_optimizer
from keras_hposgld.samplers.psgld import PSGLD
from keras_hposgld.samplers.registry import deserialize
from keras_hposgld.samplers.registry import get
from keras_hposgld.samplers.registry import register
from keras_hposgld.samplers.registry import serialize
from keras_hposgld.samplers.sampler import Sampler
from keras_hposgld.samplers.sgld import SGLD

__all__ = [
    "AutoSGLD",
    "PSGLD",
    "SGLD",
    "Sampler",
    "deserialize",
    "from_optimizer",
    "get",
    "register",
    "serialize",
]
