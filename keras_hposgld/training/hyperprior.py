"""What the priors of hyperparameters add to their hypergradient.

A prior is worth as much as one outer example: with a mean over n outer examples
as the outer loss, minus its logarithm counts 1/n, in units of what the loss of
an example is when it is minus a logarithm of a probability. A cross-entropy is.
A squared error is it times 2 sigma^2, where sigma^2, the variance of the noise,
is the outer loss itself; an absolute error is it times the outer loss.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.data.level import Level
from keras_hposgld.estimators import HypergradientEstimator
from keras_hposgld.samplers import Sampler
from keras_hposgld.samplers.sampler import effective_scale

# By how much an error exceeds minus a log-likelihood, over the outer loss.
_UNITS = (
    (2.0, keras.losses.MeanSquaredError, keras.losses.mean_squared_error),
    (1.0, keras.losses.MeanAbsoluteError, keras.losses.mean_absolute_error),
)


def loss_unit(loss: Any, outer_loss: tf.Tensor) -> tf.Tensor:
    """What the loss of an example is, over minus a log-likelihood.

    Args:
        loss: What the model was compiled with, or `outer_loss`: Keras losses,
            their names, or a structure of them. Those that are no squared or
            absolute errors count as log-likelihoods.
        outer_loss: Scalar tensor, its value now.
    """
    parts = [
        keras.losses.get(part)
        for part in keras.tree.flatten(loss)
        if part is not None
    ]
    for factor, kind, function in _UNITS:
        if parts and all(
            isinstance(part, kind) or part is function for part in parts
        ):
            return factor * tf.stop_gradient(outer_loss)
    return tf.ones_like(outer_loss)


class SharesSeen:
    """What share of the derivative by a pull a chain's estimate holds.

    Args:
        weights: List of variables.
        estimator: `HypergradientEstimator`.
        sampler: `Sampler`.
        state: Its state after the last step of the chain.
        index: Integer tensor, the number of that step.
    """

    def __init__(
        self,
        weights: list,
        estimator: HypergradientEstimator,
        sampler: Sampler,
        state: dict,
        index: Any,
    ):
        self.weights = weights
        self.estimator = estimator
        self.sampler = sampler
        self._now = state, index
        self._scales: list = []

    def __call__(
        self, weight: Any, curvature: tf.Tensor, is_decoupled: bool
    ) -> tf.Tensor:
        """See `Hyperparameter.prior_gradient`."""
        if is_decoupled:
            _, index = self._now
            step = self.sampler.learning_rate_at(index, curvature.dtype)
            return self.estimator.share_seen(step * curvature, 0.0)
        if not self._scales:
            self._scales = effective_scale(
                self.sampler,
                [tf.ones_like(w.value) for w in self.weights],
                *self._now,
            )
        places = [i for i, w in enumerate(self.weights) if w is weight]
        if not places:  # it is frozen
            return tf.zeros_like(curvature)
        scale = tf.cast(self._scales[places[0]], curvature.dtype)
        shared = [i for i, size in enumerate(curvature.shape) if size == 1]
        step = tf.reduce_mean(scale, shared, keepdims=True)
        rate = step * curvature
        return self.estimator.share_seen(rate, self.sampler.momentum)


class Hyperprior:
    """The priors of the hyperparameters of a model.

    Attributes:
        owners: Function without arguments to the objects that own them.
        num_examples: Function without arguments to the number of outer
            examples, set by `read`.
    """

    def __init__(self) -> None:
        self.owners: Callable = list
        self.num_examples: Callable = lambda: 1.0
        self._number: Any = None

    @property
    def exists(self) -> bool:
        """Whether any of the hyperparameters has one."""
        return any(owner.shrinkage for owner in self.owners())

    def read(self, level: Level, number_drawn: Callable) -> bool:
        """Finds out how many outer examples there are.

        Args:
            level: `Level`, the outer data.
            number_drawn: Function without arguments to how many have been
                drawn: of data that never end, each one is taken for new.

        Returns:
            Whether that has changed.
        """
        if not self.exists:
            return False
        before = self._number
        try:
            passes = level.batches_per_pass
        except ValueError:  # it has no end in sight
            passes = math.inf
        self._number = passes * level.batch_size
        number = self._number
        if math.isinf(number):
            self.num_examples = number_drawn
            warnings.warn(
                f"`{level.name}` never ends, so that nobody knows how many "
                "examples it has. The prior of the strengths takes each that "
                "is drawn for a new one, and counts less and less. If the "
                "examples come again, pass them as arrays, or as a dataset "
                "that ends; or pass `shrinkage=0.0` to the regularizer.",
                stacklevel=3,
            )
        else:
            self.num_examples = lambda: number
        return number != before

    def added_to(
        self,
        hypergradient: list,
        hyperparameters: list,
        loss_unit: tf.Tensor,
        share_seen: SharesSeen,
    ) -> list:
        """The hypergradient of the outer loss and the priors together.

        Args:
            hypergradient: List of tensors.
            hyperparameters: List of variables, in that order.
            loss_unit: Scalar tensor, see `loss_unit`.
            share_seen: `SharesSeen`.
        """
        parts: dict[int, tf.Tensor] = {}
        for owner in self.owners():
            gradient = owner.prior_gradient(share_seen)
            if gradient is not None:
                own = map(id, owner.hyperparameter_variables)
                parts |= dict(zip(own, gradient, strict=True))
        number = tf.cast(self.num_examples(), loss_unit.dtype)
        weight = loss_unit / number
        return [
            part + tf.cast(weight, part.dtype) * parts[id(variable)]
            if id(variable) in parts
            else part
            for variable, part in zip(
                hyperparameters, hypergradient, strict=True
            )
        ]
