"""Data for the two levels, and few-shot tasks."""

from keras_hposgld.data.episodes import episodes

__all__ = ["episodes"]
