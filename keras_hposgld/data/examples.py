"""Arrays of examples: cut in two, or with their positions beside them."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.data.kinds import yields_batches
from keras_hposgld.data.level import Level


def check_splits(examples: tuple, **fractions: float) -> None:
    """Checks that there are arrays where something is to be cut off.

    Args:
        examples: Tuple whose first entry are the inputs.
        **fractions: The shares to cut off, by the names of their arguments.

    Raises:
        ValueError: If there are none.
    """
    if not yields_batches(examples[0]):
        return
    for name, fraction in fractions.items():
        if fraction:
            raise ValueError(
                f"`{name}` needs arrays. Received: {name}={fraction!r} and a "
                f"{type(examples[0]).__name__}. Split the data yourself."
            )


def split_off(
    examples: tuple, fraction: float, name: str
) -> tuple[tuple, tuple]:
    """Cuts the last part off a tuple of arrays, as Keras does for validation.

    Args:
        examples: Tuple of structures of arrays with one length, or of `None`.
        fraction: Float, the share of the last part.
        name: What the user calls this share.

    Returns:
        The first part and the last part.

    Raises:
        ValueError: If `fraction` leaves nothing on either side.
    """
    length = len(keras.tree.flatten(examples)[0])
    cut = math.floor(length * (1.0 - fraction))
    if not 0.0 < fraction < 1.0 or not 0 < cut < length:
        raise ValueError(
            f"`{name}` must leave examples on both sides. "
            f"Received: {name}={fraction} of {length} examples."
        )

    def part(rows):
        return keras.tree.map_structure(
            lambda array: None if array is None else array[rows], examples
        )

    return part(slice(cut)), part(slice(cut, None))


def with_indices(examples: tuple, num_examples: int) -> tuple:
    """Puts the indices of examples in the place of their sample weights.

    Args:
        examples: Tuple `(x, y, sample_weight)`; an object that yields batches
            has the indices in them.
        num_examples: Integer, how many there have to be.

    Raises:
        ValueError: If there are sample weights, or another number of examples.
    """
    x, y, sample_weight = examples
    if sample_weight is not None:
        raise ValueError(
            "`sample_weight` and `example_weights` exclude each other. "
            "Received: both."
        )
    if yields_batches(x):
        return examples
    length = len(keras.tree.flatten(x)[0])
    if length != num_examples:
        raise ValueError(
            "`example_weights` must have one weight for each training "
            f"example. Received: {num_examples} weights and {length} "
            f"examples. Use `ExampleWeights({length})`."
        )
    return x, y, np.arange(length)


def for_predictions(weights: Any, predictions: Any) -> Any:
    """Gives weights of examples the axes that losses of predictions have.

    Keras has one loss for all but the last axis of a prediction, and does not
    spread the weight of a sequence or an image over the losses in it.

    Args:
        weights: Tensor or array `(batch,)`.
        predictions: Structure of what has a shape: those of each output.

    Returns:
        A structure like `predictions` of the weights, `(batch, 1, ...)`; the
        weights as they are where each example has one loss an output.
    """
    ranks = {len(one.shape) for one in keras.tree.flatten(predictions)}
    if max(ranks) <= 2:
        return weights
    return keras.tree.map_structure(
        lambda one: keras.ops.reshape(
            weights, (-1, *(1,) * (len(one.shape) - 2))
        ),
        predictions,
    )


def with_learned_weights(
    x: Any, sample_weight: Any, example_weights: Any, model: keras.Model
) -> tuple[Any, Any]:
    """Gives the data of a plain `fit` the learned weights of its examples.

    Args:
        x: As in `keras.Model.fit`. The batches of a `tf.data.Dataset` hold
            indices in their third part, as where they were learned, or
            weights, which stay.
        sample_weight: Weights of the examples, which stay, or `None`.
        example_weights: `ExampleWeights`, or `None` for nothing.
        model: That to be trained.

    Returns:
        `x` and `sample_weight` for the plain `fit`.

    Raises:
        ValueError: If it cannot be told which example has which weight.
    """
    if example_weights is None:
        return x, sample_weight
    if sample_weight is not None:
        return x, _for_model(model, x, sample_weight)
    number = example_weights.num_examples
    learned = example_weights.weigh(np.arange(number))
    if isinstance(x, tf.data.Dataset):
        spec: Any = x.element_spec
        spec = spec if isinstance(spec, tuple) else (spec,)
        if len(spec) < 3:
            raise ValueError(
                "With `example_weights`, the batches of `x` must be (inputs, "
                "targets, indices), the indices integers, or (inputs, "
                f"targets, weights). Received: batches like {spec}."
            )
        if not getattr(spec[2], "dtype", tf.string).is_integer:
            return x, None
        predictions = _predictions(model, spec[0])

        def weighted(u: Any, v: Any, indices: Any) -> tuple:
            drawn = tf.gather(learned, indices)
            return u, v, for_predictions(drawn, predictions)

        return x.map(weighted), None
    if yields_batches(x):
        raise ValueError(
            "With `example_weights`, `x` must be arrays or a "
            f"`tf.data.Dataset`. Received: a {type(x).__name__}, whose "
            "examples are not known."
        )
    length = len(keras.tree.flatten(x)[0])
    if length != number:
        raise ValueError(
            "`sample_weight` must be given where `x` is not the training data "
            f"of `example_weights`. Received: {length} examples and {number} "
            "learned weights. Pass, for the training examples followed by "
            f"others, `sample_weight=numpy.concatenate([learner."
            "example_weights.numpy(), numpy.ones(number_of_others)])`."
        )
    return x, _for_model(model, x, np.asarray(learned))


def _for_model(model: keras.Model, x: Any, weights: Any) -> Any:
    """The weights of arrays of examples for what a model makes of them."""
    if yields_batches(x) or len(getattr(weights, "shape", ())) != 1:
        return weights
    shaped = for_predictions(weights, _predictions(model, x))
    return keras.tree.map_structure(np.asarray, shaped)


def _predictions(model: keras.Model, x: Any) -> Any:
    """The symbolic predictions for batches of examples like `x`."""
    return model.compute_output_spec(
        keras.tree.map_structure(
            lambda part: keras.KerasTensor(
                (None, *(part.shape[1:] or (1,))),
                tf.as_dtype(part.dtype).name,
            ),
            as_arrays(x),
        )
    )


def check_indices(inner: Level) -> None:
    """Checks that a batch says which examples it holds.

    Raises:
        ValueError: If its third part is missing, or no integers.
    """
    indices: Any = inner.spec[2:]
    if not indices or not getattr(indices[0], "dtype", tf.string).is_integer:
        raise ValueError(
            "With `example_weights`, the batches of `x` must be "
            "(inputs, targets, indices), the indices integers. Received: "
            f"batches like {inner.spec}. Add the position of each example, "
            "for instance with `tf.data.Dataset.enumerate`."
        )
