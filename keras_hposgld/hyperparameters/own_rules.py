"""What a kind of hyperparameter gets to renew its values by a rule of its own.

Where the training data alone are learned from, a kind may know better than an
optimizer how its values follow the weights: their law given the weights, say.
`Hyperparameter.begin_rule` gets what is known before the first chain,
`Hyperparameter.renewed` what a chain has come to.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import tensorflow as tf


class Beginning(NamedTuple):
    """What is known before the first chain.

    Attributes:
        temperature: Float, that of the law of the weights.
        is_first: Function from a weight to whether no other one stands between
            it and the inputs of the model.
        learns_scale: Whether the strengths of a kernel may share a scale that
            is learned.
        follows_any: Whether the sampler can follow a quadratic penalty of any
            strength.
    """

    temperature: float
    is_first: Callable
    learns_scale: bool
    follows_any: bool


class ChainEnd(NamedTuple):
    """What a chain has come to.

    Attributes:
        rule: String, `"gibbs"` or `"gradient"`, see `Evidence.update`.
        temperature: Float, that of the law of the weights.
        weight: Function from a weight to its value at the end of the chain, a
            tensor.
        slope: Function from a variable of hyperparameters to the derivative
            of the free energy, the mean over the chain.
        number: Scalar integer tensor: the chains before this one.
        seed_of: Function from such a variable, and an integer for what else it
            is for, to a seed of this chain alone, an integer tensor `(2,)`.
        squared_errors: As in `estimators.Estimate`: `None`, unless the weights
            were drawn from their law given all else.
    """

    rule: str
    temperature: Any
    weight: Callable
    slope: Callable
    number: tf.Tensor
    seed_of: Callable
    squared_errors: Any = None
