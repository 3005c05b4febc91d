"""Which class serves the data that a Keras user passes to `fit`."""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data.arrays import ArrayData
from keras_hposgld.data.level import Level
from keras_hposgld.data.sequences import SequenceData
from keras_hposgld.data.streams import GeneratorData
from keras_hposgld.data.streams import StreamData


def yields_batches(x) -> bool:
    """Whether inputs and targets come out of one object, not as arrays."""
    return isinstance(x, tf.data.Dataset | keras.utils.PyDataset | Iterator)


def level_data(
    name,
    x,
    y=None,
    sample_weight=None,
    *,
    batch_size=None,
    default_batch_size=None,
    shuffle=True,
    seed=0,
    inputs=None,
    class_weight=None,
    needs_targets=True,
) -> Level:
    """One level of data, from what a Keras user passes to `fit`.

    Args:
        name: What the user calls this data, for messages.
        x: Inputs, or an object that yields inputs and targets.
        y: Targets.
        sample_weight: Array, or `None`.
        batch_size: Integer or `None`. Refused where `x` has one of its own.
        default_batch_size: Integer or `None`: for single examples, where
            `batch_size` is `None`.
        shuffle: Whether what can be drawn in any order is.
        seed: Integer.
        inputs: See `elements.inputs_of`.
        class_weight: See `with_class_weights`.
        needs_targets: As in `elements.as_batch`.

    Raises:
        ValueError: If an argument does not go with the kind of data, if
            targets are missing, or for the reasons that the classes name.
    """
    if not yields_batches(x):
        if x is None or (y is None and needs_targets):
            raise ValueError(
                f"`{name}` must consist of inputs and targets. Received: "
                f"x={'None' if x is None else 'given'}, "
                f"y={'None' if y is None else 'given'}. (Only a model that is "
                "compiled without a loss, and adds its own, needs no targets.)"
            )
        examples = with_class_weights((x, y, sample_weight), class_weight)
        size = default_batch_size if batch_size is None else batch_size
        return ArrayData(name, examples, size, shuffle, seed, inputs)

    def weighted(*batch):
        return with_class_weights(batch, class_weight)

    is_dataset = isinstance(x, tf.data.Dataset)
    for argument, value in (
        ("y", y),
        ("sample_weight", sample_weight),
        ("batch_size", None if is_dataset else batch_size),
    ):
        if value is not None:
            raise ValueError(
                f"`{argument}` cannot be given where `{name}` is a "
                f"{type(x).__name__}. Received: {argument}={value!r:.80}. "
                "Its elements are batches (x, y) or (x, y, sample_weight)."
            )
    if is_dataset:
        return StreamData(
            name,
            x,
            batch_size,
            inputs,
            default_batch_size=default_batch_size,
            prepare=None if class_weight is None else weighted,
            needs_targets=needs_targets,
        )
    how = dict(
        prepare=lambda batch: weighted(*batch),
        inputs=inputs,
        needs_targets=needs_targets,
    )
    if isinstance(x, keras.utils.PyDataset):
        return SequenceData(name, x, shuffle, seed, **how)
    return GeneratorData(name, x, **how)


def with_class_weights(batch: tuple, class_weight: dict | None) -> tuple:
    """Adds one weight per example to `(x, y)`, from a weight per class.

    Args:
        batch: Tuple of inputs and, maybe, targets and `None`. Targets are
            integer classes, `(n,)` or `(n, 1)`, or one-hot, `(n, k)`.
        class_weight: Dictionary from class to weight, 1 where it has none; or
            `None`, which changes nothing.

    Raises:
        ValueError: If there are sample weights already, no targets, or several.
    """
    if class_weight is None:
        return batch
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    if sample_weight is not None:
        raise ValueError(
            "`class_weight` and `sample_weight` exclude each other. "
            "Received: both."
        )
    if y is None or isinstance(y, dict | list | tuple):
        raise ValueError(
            "`class_weight` needs one array of targets. "
            f"Received: targets of type {type(y).__name__}. Pass "
            "`sample_weight` instead."
        )
    table = np.ones(max(class_weight, default=0) + 1, keras.config.floatx())
    for number, weight in class_weight.items():
        table[number] = weight
    is_tensor = tf.is_tensor(y)
    y = tf.convert_to_tensor(y)
    is_one_hot = y.shape.rank > 1 and y.shape[-1] > 1
    classes = tf.argmax(y, -1) if is_one_hot else tf.reshape(y, [-1])
    classes = tf.cast(classes, tf.int64)
    known = classes < len(table)
    weights = tf.where(
        known, tf.gather(table, tf.where(known, classes, 0)), 1.0
    )
    return (x, y, weights) if is_tensor else (x, y.numpy(), weights.numpy())
