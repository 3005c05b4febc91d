"""What learned weights of the examples of inner batches have in common.

Keras has the weights of examples in the third part of a batch. Where they are
learned, integers stand there: the *keys* by which the weights are looked up,
such as the position of each example, or its source.
"""

import abc
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter


class BatchWeights(Hyperparameter):
    """Base of what a learner or a callback takes as `example_weights`.

    Attributes:
        keys: String: what the keys of examples are, for messages.
        key_hint: String: how batches come to have them, for messages.
    """

    keys = "indices"
    key_hint = (
        "Add the position of each example, for instance with "
        "`tf.data.Dataset.enumerate`."
    )

    @abc.abstractmethod
    def keys_of(self, y: Any, length: int, sources: Any) -> Any:
        """The keys of training examples that are arrays.

        Args:
            y: Their targets.
            length: Integer, how many they are.
            sources: What `fit` got, or `None`.

        Returns:
            Integer array `(length,)`; `None` where none are needed.

        Raises:
            ValueError: If they do not fit the weights.
        """

    @abc.abstractmethod
    def weigh(self, y: Any, y_pred: Any, keys: Any) -> tuple:
        """What the loss of an inner batch is computed from.

        Args:
            y: Structure of tensors, the targets.
            y_pred: Structure of tensors, the predictions.
            keys: Integer tensor `(batch,)`, or `None`.

        Returns:
            Targets, predictions and sample weights, as a Keras loss takes them.
        """

    @abc.abstractmethod
    def weighted(self, x: Any, y: Any, keys: Any) -> tuple:
        """Examples as a plain `fit` takes them, with weights that stay.

        Args:
            x: Structure of tensors, the inputs.
            y: As in `weigh`.
            keys: As in `weigh`.

        Returns:
            Inputs, targets and weights `(number,)`.
        """

    def has_votes(self, sources: Any) -> bool:
        """Whether the targets of training data are votes on them.

        By default they are what the outer data have, too.

        Args:
            sources: As in `keys_of`.
        """
        del sources
        return False

    def check_batch(self, spec: Any, sources: Any = None) -> None:
        """Checks that a batch says which examples it holds.

        Args:
            spec: Tuple of structures of `tf.TensorSpec`.
            sources: As in `keys_of`.

        Raises:
            ValueError: If its third part is missing, or no integers.
        """
        del sources
        third = spec[2:]
        if third and getattr(third[0], "dtype", tf.string).is_integer:
            return
        raise ValueError(
            "With `example_weights`, the batches of `x` must be (inputs, "
            f"targets, {self.keys}), the {self.keys} integers. Received: "
            f"batches like {spec}. {self.key_hint}"
        )


def for_predictions(weights: Any, predictions: Any) -> Any:
    """Gives weights of examples the axes that losses of predictions have.

    Keras has one loss for all but the last axis of a prediction, and does not
    spread the weight of a sequence or an image over the losses in it.

    Args:
        weights: Tensor or array `(batch,)`.
        predictions: Structure of what has a shape: those of each output.

    Returns:
        A structure like `predictions` of the weights, `(batch, 1, ...)`; the
        weights as they are where each example has one loss an output.
    """
    ranks = {len(one.shape) for one in keras.tree.flatten(predictions)}
    if max(ranks) <= 2:
        return weights
    return keras.tree.map_structure(
        lambda one: keras.ops.reshape(
            weights, (-1, *(1,) * (len(one.shape) - 2))
        ),
        predictions,
    )
