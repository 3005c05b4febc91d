"""Keras layers that own hyperparameters."""

from keras_hposgld.layers.average_predictions import average_predictions
from keras_hposgld.layers.learnable_affine import LearnableAffine

__all__ = ["LearnableAffine", "average_predictions"]
