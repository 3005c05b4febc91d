"""Learnable hyperparameters: Keras objects that own unconstrained variables.

What it takes to write a kind of one's own: the contract `Hyperparameter`,
`register`, variables with a bound, and what rules of their own get.
`CONTRIBUTING.md` has a skeleton, and the documentation a page.
"""

from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.own_rules import Beginning
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable

__all__ = [
    "Beginning",
    "ChainEnd",
    "Hyperparameter",
    "bounded_start",
    "bounded_value",
    "register",
    "unconstrained_variable",
]
