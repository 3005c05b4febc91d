"""One task of meta-learning, seen as a bilevel problem.

The chain starts at the initial weights, which are hyperparameters; it is run
on the support examples of the task and judged on the query examples. In the
notation of the paper, D0 is the identity.
"""

import keras
import tensorflow as tf

from keras_hposgld.training.keras_problem import KerasProblem
from keras_hposgld.training.keras_problem import layer_variables


class MetaProblem(KerasProblem):
    """The bilevel problem of a task.

    Its hyperparameters are the initial weights, followed by those which the
    model's layers and loss own.

    Args:
        trainer: A built and compiled `MetaModel`.
        support: Tuple `(x, y)` or `(x, y, sample_weight)`.
        query: Likewise, or `None` where nothing is learned.
        proximal: Float: strength of a pull to the initial weights,
            `proximal / 2 * sum((params - initial) ** 2)`.
    """

    def __init__(self, trainer, support, query=None, proximal: float = 0.0):
        super().__init__(
            trainer,
            trainer.owned_hyperparameters,
            layer_variables(trainer.model),
            trainer.outer_level.loss(trainer),
            trainer.outer_level.layer_state,
            tracks_metrics=False,
        )
        self.support = support
        self.query = query
        self.proximal = proximal
        self.initial_params = self.split

    def split(self, hyperparameters: list) -> list:
        """The initial weights among the hyperparameters."""
        return hyperparameters[: len(self.weights)]

    def _inner(self, hyperparameters, params, batch, carry):
        owned = hyperparameters[len(self.weights) :]
        loss, carry = super()._inner(owned, params, self.support, carry)
        if self.proximal:
            distances = [
                tf.reduce_sum((param - start) ** 2)
                for param, start in zip(
                    params, self.split(hyperparameters), strict=True
                )
            ]
            loss += 0.5 * self.proximal * tf.add_n(distances)
        return loss, carry

    def _decay(self, hyperparameters, params):
        return super()._decay(hyperparameters[len(self.weights) :], params)

    def _curvature(self, hyperparameters):
        return super()._curvature(hyperparameters[len(self.weights) :])

    def _outer(self, hyperparameters, params, batch, carry):
        owned = hyperparameters[len(self.weights) :]
        return super()._outer(owned, params, self.query, carry)

    def predict(self, hyperparameters, params, x, carry):
        """What the model predicts with some weights, in inference."""
        owned = hyperparameters[len(self.weights) :]
        with self._scope(owned, params, carry):
            return keras.tree.map_structure(
                tf.convert_to_tensor, self.trainer(x, training=False)
            )
