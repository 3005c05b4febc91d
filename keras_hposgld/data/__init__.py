"""Data for the two levels, and few-shot tasks."""

from keras_hposgld.data.episodes import episodes
from keras_hposgld.data.splits import split
from keras_hposgld.hyperparameters.votes import expand_votes

__all__ = ["episodes", "expand_votes", "split"]
