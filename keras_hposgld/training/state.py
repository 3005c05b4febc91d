"""All that training resumes from: one inventory for every way of saving.

`.keras` files, `tf.train.Checkpoint` and the backups of the callback read it.
`docs/state.md` prints it. Whoever adds a counter adds it here, or to the
variables of a part that is here.
"""

import collections
import itertools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.hyperparameters.discovery import is_kept_by
from keras_hposgld.hyperparameters.discovery import not_owned


def state_of(
    model: keras.Model, owners: list, outer_level: Any, optimizer: Any
) -> dict[str, list[keras.Variable]]:
    """The variables that training resumes from, by what they are.

    Args:
        model: The user's `keras.Model`, built.
        owners: The objects that own its hyperparameters.
        outer_level: `OuterLevel`.
        optimizer: The Keras optimizer that holds the sampler's state.
    """
    return {
        "weights": not_owned(model.weights, model),
        "random_states": random_states(model),
        "hyperparameters": [
            variable for owner in owners for variable in owner.fixed_variables
        ],
        "sampler": list(optimizer.variables),
        "hyper_optimizer": list(outer_level.hyper_optimizer.variables),
        # Counters, and what the estimator keeps from chain to chain.
        "outer_level": list(outer_level.weights),
    }


def random_states(model: keras.Model) -> list[keras.Variable]:
    """Counters of dropout and the like, which Keras does not save."""
    weights = {id(weight) for weight in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def checkpointed(state: dict[str, list[keras.Variable]]) -> tf.Module:
    """An inventory as what `tf.train.Checkpoint` follows.

    It follows attributes and lists of TensorFlow's, not those of Keras.
    """
    module = tf.Module()
    for name, variables in state.items():
        setattr(module, name, [variable.value for variable in variables])
    return module


def unsaved_by_keras(learner: keras.Model) -> dict[str, keras.Variable]:
    """The part of a learner's state that Keras's files leave out, by name.

    Keras saves a loss by its config alone, also where it is learned, and a
    regularizer only if a layer holds it on an attribute.
    """
    parts = [("random_state", v) for v in random_states(learner.model)]
    for owner in find_hyperparameters(learner):
        if not is_kept_by(learner, owner):
            parts += owner.saved_apart()
    numbers: dict[str, Iterator] = collections.defaultdict(itertools.count)
    return {f"{name}_{next(numbers[name])}": v for name, v in parts}
