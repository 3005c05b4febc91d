"""Data for the two levels, and few-shot tasks."""

from keras_hposgld.data.episodes import episodes
from keras_hposgld.data.splits import split

__all__ = ["episodes", "split"]
