"""Training data whose examples have learned weights."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.data.kinds import yields_batches
from keras_hposgld.hyperparameters.batch_weights import BatchWeights
from keras_hposgld.hyperparameters.batch_weights import for_predictions


def check_sources(
    sources: Any, example_weights: BatchWeights | None, **others: Any
) -> None:
    """Checks what goes with the sources of examples.

    Args:
        sources: As in `BilevelModel.fit`.
        example_weights: That of the learner.
        **others: Arguments that do not go with them, by their names.

    Raises:
        ValueError: If there is nothing that has a weight for each source, or
            if one of the others is given.
    """
    if sources is None:
        return
    if example_weights is None:
        raise ValueError(
            "`sources` needs a learner that has a weight for each of them. "
            "Received: sources and no example_weights. Make it by "
            "`BilevelModel(model, example_weights=SourceWeights(number))`."
        )
    for name, value in others.items():
        if value:
            raise ValueError(
                f"`{name}` cannot be combined with `sources`: what the sources "
                f"say is not the truth. Received: {name}={value}. Pass data of "
                "their own, `outer_data=` or `validation_data=`."
            )


def with_keys(
    examples: tuple,
    example_weights: BatchWeights | None,
    sources: Any = None,
    class_weight: dict | None = None,
) -> tuple:
    """Puts the keys of examples in the place of their sample weights.

    Args:
        examples: Tuple `(x, y, sample_weight)`; an object that yields batches
            has the keys in them.
        example_weights: `BatchWeights`, or `None` for nothing.
        sources: As in `BilevelModel.fit`.
        class_weight: Likewise.

    Raises:
        ValueError: If there are other weights, or the examples do not fit.
    """
    if example_weights is None:
        return examples
    x, y, sample_weight = examples
    for name, value in (
        ("sample_weight", sample_weight),
        ("class_weight", class_weight),
    ):
        if value is not None:
            raise ValueError(
                f"`{name}` and `example_weights` exclude each other. "
                "Received: both."
            )
    if yields_batches(x):
        return examples
    length = len(keras.tree.flatten(x)[0])
    return x, y, example_weights.keys_of(y, length, sources)


def with_learned_weights(
    x: Any,
    y: Any,
    sample_weight: Any,
    example_weights: BatchWeights | None,
    model: keras.Model,
    sources: Any = None,
) -> tuple[Any, Any, Any]:
    """Gives the data of a plain `fit` the learned weights of its examples.

    Args:
        x: As in `keras.Model.fit`. The batches of a `tf.data.Dataset` hold
            keys in their third part, as where they were learned, or weights,
            which stay.
        y: As in `keras.Model.fit`.
        sample_weight: Weights of the examples, which stay, or `None`.
        example_weights: `BatchWeights`, or `None` for nothing.
        model: That to be trained.
        sources: As in `BilevelModel.fit`.

    Returns:
        `x`, `y` and `sample_weight` for the plain `fit`.

    Raises:
        ValueError: If it cannot be told which example has which weight.
    """
    if example_weights is None:
        return x, y, sample_weight
    if sample_weight is not None:
        return x, y, _for_model(model, x, sample_weight)
    if isinstance(x, tf.data.Dataset):
        return _with_weights(x, example_weights, model, sources), None, None
    if yields_batches(x):
        raise ValueError(
            "With `example_weights`, `x` must be arrays or a "
            f"`tf.data.Dataset`. Received: a {type(x).__name__}, whose "
            "examples are not known."
        )
    x, y = as_arrays((x, y))
    length = len(keras.tree.flatten(x)[0])
    keys = example_weights.keys_of(y, length, sources)
    x, y, weights = keras.tree.map_structure(
        np.asarray, example_weights.weighted(x, y, keys)
    )
    return x, y, _for_model(model, x, weights)


def _with_weights(
    x: tf.data.Dataset,
    example_weights: BatchWeights,
    model: keras.Model,
    sources: Any,
) -> tf.data.Dataset:
    """A dataset of batches with keys, as one with weights."""
    spec: Any = x.element_spec
    spec = spec if isinstance(spec, tuple) else (spec,)
    third = spec[2] if len(spec) > 2 else None
    if third is not None and not getattr(third, "dtype", tf.string).is_integer:
        return x
    example_weights.check_batch(spec, sources)
    predictions = _predictions(model, spec[0])

    def weighted(u: Any, v: Any, keys: Any = None) -> tuple:
        u, v, weights = example_weights.weighted(u, v, keys)
        return u, v, for_predictions(weights, predictions)

    return x.map(weighted)


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
