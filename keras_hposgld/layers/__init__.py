"""Keras layers that own hyperparameters."""

from keras_hposgld.layers.average_predictions import average_predictions
from keras_hposgld.layers.learnable_activity_penalty import (
    LearnableActivityPenalty,
)
from keras_hposgld.layers.learnable_affine import LearnableAffine
from keras_hposgld.layers.learnable_dropout import LearnableDropout
from keras_hposgld.layers.learnable_gaussian_noise import LearnableGaussianNoise

__all__ = [
    "LearnableActivityPenalty",
    "LearnableAffine",
    "LearnableDropout",
    "LearnableGaussianNoise",
    "average_predictions",
]
