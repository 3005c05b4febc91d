"""The examples of both levels together, for what is trained after learning."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.data.examples import split_off
from keras_hposgld.data.kinds import with_class_weights
from keras_hposgld.data.kinds import yields_batches


class Everything:
    """Training and outer examples of one `fit`, joined when asked for.

    Args:
        examples: Tuple `(x, y, sample_weight)` of the training data.
        outer_data: As in `BilevelModel.fit`; `None` where the outer examples
            are drawn from the training data.
        class_weight: Dictionary or `None`. Here it counts for all examples.
        validation_split: Float, the share of the training data that is cut
            off before.
        validation_data: If given, nothing is cut off.
        example_weights: `ExampleWeights` or `None`.

    Raises:
        ValueError: If the data cannot be joined.
    """

    def __init__(
        self,
        examples: tuple,
        *,
        outer_data: Any = None,
        class_weight: dict | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        example_weights: Any = None,
    ):
        if example_weights is not None:
            raise ValueError(
                "`refit=True` cannot be combined with `example_weights`: the "
                "outer examples have no learned weight. Received: both. Pass "
                "`refit=False`, and afterwards call `learner.refit(x, y)` with "
                "the training data, or with weights for all examples."
            )
        outer = keras.utils.unpack_x_y_sample_weight(outer_data)
        for name, inputs in (("x", examples[0]), ("outer_data", outer[0])):
            if yields_batches(inputs):
                raise ValueError(
                    "`refit=True` needs arrays, to join the training data "
                    "with the outer data. Received: "
                    f"{name} of type {type(inputs).__name__}. Pass "
                    "`refit=False`, and afterwards call `learner.refit(...)` "
                    "with all the data."
                )
        if outer_data is not None:
            _check_alike(examples[2], outer[2])
        self.examples = examples
        self.outer = None if outer_data is None else outer
        self.class_weight = class_weight
        self.share_cut_off = validation_split if validation_data is None else 0

    def joined(self) -> tuple:
        """Tuple `(x, y, sample_weight)`: training examples, then outer ones.

        Where outer examples are drawn from the training data, all are in the
        order that they were given in.
        """
        examples = as_arrays(self.examples)
        if self.share_cut_off:
            examples, _ = split_off(
                examples, self.share_cut_off, "validation_split"
            )
        levels = [examples]
        if self.outer is not None:
            levels.append(as_arrays(self.outer))
        weights = _filled(
            [
                (_length(level), _weights(level, self.class_weight))
                for level in levels
            ]
        )
        return (
            _together([level[0] for level in levels]),
            _together([level[1] for level in levels]),
            _together(weights),
        )


def _check_alike(one: Any, other: Any) -> None:
    """Checks that the weights of two levels have one structure, if any."""
    if one is None or other is None:
        return
    try:
        keras.tree.assert_same_structure(one, other)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`refit=True` needs sample weights of one structure in the "
            "training and the outer data, to join them. Received: "
            f"{type(one).__name__} and {type(other).__name__}. Pass "
            "`refit=False`, and afterwards call `learner.refit(...)` with all "
            "the data."
        ) from error


def _length(level: tuple) -> int:
    return len(keras.tree.flatten(level[0])[0])


def _weights(level: tuple, class_weight: dict | None) -> Any:
    """The weights of a level's examples, those of classes included."""
    x, y, own = level
    if class_weight is None:
        return own
    of_classes = with_class_weights((x, y, None), class_weight)[2]
    if own is None:
        return of_classes
    own = np.asarray(own)
    shape = (-1,) + (1,) * (own.ndim - 1)
    return own * np.asarray(of_classes).reshape(shape)


def _filled(weights: list[tuple]) -> list:
    """The weights of each level, 1 where only the other one has any.

    Args:
        weights: List of pairs: how many examples, and their weights or `None`.
    """
    given = [own for _, own in weights if own is not None]
    if not given:
        return [None] * len(weights)
    return [
        keras.tree.map_structure(
            lambda leaf, length=length: np.ones(
                (length, *leaf.shape[1:]), keras.config.floatx()
            ),
            given[0],
        )
        if own is None
        else own
        for length, own in weights
    ]


def _together(parts: list) -> Any:
    """Structures of arrays, one after the other; `None` where the first is."""
    first, *others = parts
    if first is None or not others:
        return first
    return keras.tree.map_structure(
        lambda *leaves: _concatenated(leaves), first, *others
    )


def _concatenated(leaves: tuple) -> Any:
    if leaves[0] is None:
        return None
    if all(map(tf.is_tensor, leaves)) and len({x.dtype for x in leaves}) == 1:
        return tf.concat(leaves, 0)
    return np.concatenate([np.asarray(leaf) for leaf in leaves])


def passes_of(num_batches: int, num_examples: int, batch_size: int) -> int:
    """How many passes over the examples take so many batches, rounded up.

    Args:
        num_batches: Integer.
        num_examples: Integer.
        batch_size: Integer.
    """
    return math.ceil(num_batches / math.ceil(num_examples / batch_size))
