"""Learned losses, and learned weights of the losses of several outputs."""

from keras_hposgld.losses.learnable_class_weights import LearnableClassWeights
from keras_hposgld.losses.learnable_gaussian_loss import LearnableGaussianLoss
from keras_hposgld.losses.learnable_label_smoothing import (
    LearnableLabelSmoothing,
)
from keras_hposgld.losses.learnable_loss import LearnableLoss
from keras_hposgld.losses.learnable_output_weights import LearnableOutputWeights
from keras_hposgld.losses.learnable_taylor_loss import LearnableTaylorLoss
from keras_hposgld.losses.noisy_label_crossentropy import NoisyLabelCrossentropy
from keras_hposgld.losses.output_weight import LearnableOutputWeight

__all__ = [
    "LearnableClassWeights",
    "LearnableGaussianLoss",
    "LearnableLabelSmoothing",
    "LearnableLoss",
    "LearnableOutputWeight",
    "LearnableOutputWeights",
    "LearnableTaylorLoss",
    "NoisyLabelCrossentropy",
]
