"""Keras layers that own hyperparameters."""

from keras_hposgld.hyperparameters.augmentation import average_predictions
from keras_hposgld.hyperparameters.augmentation import LearnableAffine

__all__ = ["LearnableAffine", "average_predictions"]
