"""All examples divided into folds, each of which is the outer level once.

A chain of fold `j` takes its inner batches from the examples of the other
folds, and its outer batches from those of fold `j`. The batches of all folds
come stacked on a new leading axis, in front of that of the steps.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hposgld.data.arrays import ArrayData
from keras_hposgld.data.arrays import drawn_indices
from keras_hposgld.data.arrays import examples_at
from keras_hposgld.data.level import Level


class FoldedLevel(Level):
    """One level of data in every fold, drawn from one copy of the arrays.

    In each fold the examples come in the order that `ArrayData` of these
    examples alone would draw.

    Args:
        arrays: `ArrayData` of all examples.
        rows: List of integer arrays: which examples there are in each fold.
        num_in_pass: Number: how many examples are one pass over this level.
    """

    def __init__(self, arrays: ArrayData, rows: list, num_in_pass: float):
        self.arrays = arrays
        self.name = arrays.name
        self.shapes = arrays.shapes
        self.batch_size = min(arrays.batch_size, *map(len, rows))
        self.rows = rows
        self.num_in_pass = num_in_pass

    @property
    def batches_per_pass(self) -> float:
        return self.num_in_pass / self.batch_size

    def first_batch(self) -> tuple:
        return self.arrays.first_batch()

    def chains(
        self,
        num_steps: int,
        first: Callable[[], int] = lambda: 0,
        keeps_lengths: bool = True,
    ) -> tf.data.Dataset:
        # As in `ArrayData`, which says what the functions may hold.
        del keeps_lengths
        shape = (num_steps, self.batch_size)
        how = (self.arrays.shuffle, self.arrays.seed)
        lengths = tuple(map(len, self.rows))

        def draw():
            for chain in itertools.count(first()):
                yield np.stack(
                    [drawn_indices(chain, shape, (n, *how)) for n in lengths]
                )

        positions = tf.data.Dataset.from_generator(
            draw,
            output_signature=tf.TensorSpec((len(lengths), *shape), tf.int64),
        )
        return examples_at(positions, self.arrays, self.rows)


def folded(inner: Any, outer: Any, fold_of: np.ndarray) -> list[Level]:
    """The inner and the outer level of all folds.

    Args:
        inner: `ArrayData` of all examples, as the inner objective takes them.
        outer: The same, as the outer one does.
        fold_of: Integer array, the fold of each example.
    """
    number = int(fold_of.max()) + 1
    folds = [np.flatnonzero(fold_of == fold) for fold in range(number)]
    others = [np.flatnonzero(fold_of != fold) for fold in range(number)]
    # Each example is an inner one in all folds but one, an outer one in one.
    length = len(fold_of)
    return [
        FoldedLevel(inner, others, length * (number - 1) / number),
        FoldedLevel(outer, folds, length),
    ]
