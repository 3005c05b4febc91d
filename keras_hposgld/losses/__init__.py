"""Learned losses for classification."""

from keras_hposgld.losses.learnable_class_weights import LearnableClassWeights
from keras_hposgld.losses.learnable_label_smoothing import (
    LearnableLabelSmoothing,
)
from keras_hposgld.losses.learnable_taylor_loss import LearnableTaylorLoss

__all__ = [
    "LearnableClassWeights",
    "LearnableLabelSmoothing",
    "LearnableTaylorLoss",
]
