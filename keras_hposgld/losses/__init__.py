"""Learned losses: three for classification, one for regression."""

from keras_hposgld.losses.learnable_class_weights import LearnableClassWeights
from keras_hposgld.losses.learnable_gaussian_loss import LearnableGaussianLoss
from keras_hposgld.losses.learnable_label_smoothing import (
    LearnableLabelSmoothing,
)
from keras_hposgld.losses.learnable_taylor_loss import LearnableTaylorLoss

__all__ = [
    "LearnableClassWeights",
    "LearnableGaussianLoss",
    "LearnableLabelSmoothing",
    "LearnableTaylorLoss",
]
