"""Learned regularizers, for use as `kernel_regularizer`."""

from keras_hposgld.regularizers.learnable_l1 import LearnableL1
from keras_hposgld.regularizers.learnable_l1l2 import LearnableL1L2
from keras_hposgld.regularizers.learnable_l2 import LearnableL2
from keras_hposgld.regularizers.learnable_weight_decay import (
    LearnableWeightDecay,
)

__all__ = [
    "LearnableL1",
    "LearnableL1L2",
    "LearnableL2",
    "LearnableWeightDecay",
]
