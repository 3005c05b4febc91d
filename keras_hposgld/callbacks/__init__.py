"""Keras callbacks: learning hyperparameters, and watching them."""

from keras_hposgld.callbacks.chain_diagnostics import ChainDiagnostics
from keras_hposgld.callbacks.hyperparameter_history import HyperparameterHistory
from keras_hposgld.callbacks.hyperparameter_tensorboard import (
    HyperparameterTensorBoard,
)
from keras_hposgld.callbacks.learn_hyperparameters import LearnHyperparameters

__all__ = [
    "ChainDiagnostics",
    "HyperparameterHistory",
    "HyperparameterTensorBoard",
    "LearnHyperparameters",
]
