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

from keras_hposgld.data.arrays import drawn_indices
from keras_hposgld.data.elements import flat
from keras_hposgld.data.elements import packed
from keras_hposgld.data.kinds import level_data
from keras_hposgld.data.level import Level
from keras_hposgld.data.splits import fold_numbers


class FoldedLevel(Level):
    """One level of data in every fold, drawn from one copy of the arrays.

    In each fold the examples come in the order that `ArrayData` of these
    examples alone would draw.

    Args:
        arrays: `ArrayData` of all examples.
        rows: List of integer arrays: which examples there are in each fold.
        num_in_pass: Number: how many examples are one pass over this level.
    """

    def __init__(self, arrays: Any, rows: list, num_in_pass: float):
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
        examples = self.arrays.examples
        rows = tf.data.Dataset.from_tensors(tuple(self.rows)).repeat()
        tensors = tf.data.Dataset.from_tensors(tuple(flat(examples))).repeat()
        like = packed(examples, map(str, self.shapes))

        def chain(position, rows, tensors):
            index = tf.stack(
                [tf.gather(row, position[j]) for j, row in enumerate(rows)]
            )
            drawn = [tf.gather(tensor, index) for tensor in tensors]
            return tf.data.Dataset.from_tensors(packed(like, drawn))

        # Not `map`: tf.data would make several chains at a time.
        return tf.data.Dataset.zip((positions, rows, tensors)).flat_map(chain)


def folded_levels(
    examples: tuple,
    number: int,
    outer_batch_size: int | None = None,
    needs_targets: tuple[bool, bool] = (True, True),
    *,
    seed: int,
    batch_size: int | None = None,
    class_weight: dict | None = None,
    **arguments: Any,
) -> list[Level]:
    """The inner and the outer level of all folds.

    Args:
        examples: Tuple `(x, y, sample_weight)` of arrays.
        number: Integer, the folds.
        outer_batch_size: Integer, `None` for `batch_size`.
        needs_targets: Whether the inner and the outer objective do.
        seed: Integer.
        batch_size: As in `level_data`.
        class_weight: Of the inner level.
        **arguments: `shuffle` and `inputs`, as in `level_data`.

    Raises:
        ValueError: If there are fewer examples than folds, or for the reasons
            of `level_data`.
    """
    fold_of = fold_numbers(examples, number, "outer_folds", seed)
    folds = [np.flatnonzero(fold_of == fold) for fold in range(number)]
    others = [np.flatnonzero(fold_of != fold) for fold in range(number)]
    inner = level_data(
        "x",
        *examples,
        batch_size=batch_size,
        class_weight=class_weight,
        seed=seed,
        needs_targets=needs_targets[0],
        **arguments,
    )
    outer = level_data(
        "outer_folds",
        *examples,
        batch_size=outer_batch_size,
        default_batch_size=batch_size,
        seed=seed + 1,
        needs_targets=needs_targets[1],
        **arguments,
    )
    # Each example is an inner one in all folds but one, an outer one in one.
    length = len(fold_of)
    return [
        FoldedLevel(inner, others, length * (number - 1) / number),
        FoldedLevel(outer, folds, length),
    ]
