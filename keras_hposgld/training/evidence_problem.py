"""A Keras model as a problem whose training data judge it by themselves."""

from typing import Any

import tensorflow as tf

from keras_hposgld.regularizers.mixture import mixing
from keras_hposgld.training.keras_problem import KerasProblem


class EvidenceProblem(KerasProblem):
    """The problem for samplers that solve quadratic penalties exactly.

    Its L1 penalties are quadratic ones, of curvatures that are drawn between
    the chains, see `regularizers.mixture`. They are so in here alone: whatever
    else calls the model, such as validation, has the penalties as they are.
    """

    def _inner(
        self, hyperparameters: list, params: list, batch: Any, carry: Any
    ) -> tuple[tf.Tensor, tuple]:
        with mixing(self.weights):
            return super()._inner(hyperparameters, params, batch, carry)

    def _curvature(self, hyperparameters: list) -> list:
        with mixing(self.weights):
            return super()._curvature(hyperparameters)
