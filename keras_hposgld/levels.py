"""From what a user passes to `BilevelModel.fit` to the two levels of data."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data import ArrayData
from keras_hposgld.data import StreamData


def from_fit_arguments(
    examples: tuple,
    *,
    class_weight=None,
    validation_split=0.0,
    validation_data=None,
    outer_data=None,
    outer_split=0.0,
    batch_size=None,
    outer_batch_size=None,
    shuffle=True,
    seed=0,
) -> tuple:
    """Reads the data arguments of `BilevelModel.fit`, see there.

    Args:
        examples: Tuple `(x, y, sample_weight)` of the training data.

    Returns:
        Inner data, outer data and validation data.

    Raises:
        ValueError: If outer data are missing, given twice, empty, or of
            another structure than the training data; if an argument does not
            go with a dataset.
    """
    if isinstance(examples[0], tf.data.Dataset):
        for argument, value in (
            ("validation_split", validation_split),
            ("outer_split", outer_split),
            ("class_weight", class_weight),
        ):
            if value:
                raise ValueError(
                    f"`{argument}` needs arrays. Received: "
                    f"{argument}={value!r} and a `tf.data.Dataset`. Split or "
                    "weight the dataset itself: its elements may be "
                    "(x, y, sample_weight)."
                )
    if validation_split and validation_data is None:
        examples, validation_data = split_off(
            examples, validation_split, "validation_split"
        )
    if outer_split:
        if outer_data is not None:
            raise ValueError(
                "`outer_data` and `outer_split` exclude each other. "
                f"Received: both, outer_split={outer_split}."
            )
        examples, outer_data = split_off(examples, outer_split, "outer_split")
    if class_weight is not None:
        x, y, sample_weight = examples
        if sample_weight is not None:
            raise ValueError(
                "`class_weight` and `sample_weight` exclude each other. "
                "Received: both."
            )
        examples = (x, y, weights_of_classes(y, class_weight))
    if outer_data is None:
        raise ValueError(
            "`outer_data` must be given: the hyperparameters are learned on "
            "examples that the weights are not trained on. "
            "Received: outer_data=None. Pass `outer_data=(x, y)` or "
            "`outer_split=0.2`."
        )
    inner = level_data(
        "x", *examples, batch_size=batch_size, shuffle=shuffle, seed=seed
    )
    is_stream = isinstance(outer_data, tf.data.Dataset)
    outer = level_data(
        "outer_data",
        *keras.utils.unpack_x_y_sample_weight(outer_data),
        batch_size=batch_size
        if outer_batch_size is None and not is_stream
        else outer_batch_size,
        shuffle=shuffle,
        seed=seed + 1,
    )
    check_same_structure(inner, outer)
    return inner, outer, validation_data


class FirstChain(keras.callbacks.Callback):
    """How many chains were drawn before this `fit`, as a function.

    It is read when training begins: by then a callback before this one may
    have restored the model from a backup. Later would be too late: within a
    compiled step the counter may move before the first batch is asked for.
    """

    def on_train_begin(self, logs=None):
        self.number = int(self.model.outer_iterations)

    def __call__(self) -> int:
        return self.number


def chains(inner, outer, num_steps: int, first) -> tf.data.Dataset:
    """Dataset of pairs: the stacked inner and outer batches of one chain.

    Args:
        inner: `ArrayData` or `StreamData`.
        outer: Likewise.
        num_steps: Integer, the length of a chain.
        first: Function that returns the number of chains drawn before. It is
            called when the dataset is iterated over.
    """
    pairs = tf.data.Dataset.zip(
        (inner.chains(num_steps, first), outer.chains(num_steps, first))
    )
    return pairs.prefetch(tf.data.AUTOTUNE)


def chains_per_pass(inner, num_steps: int) -> int:
    """How many chains see the inner data once, rounded up.

    Raises:
        ValueError: If the data never end.
    """
    if math.isinf(inner.batches_per_pass):
        raise ValueError(
            "`steps_per_epoch` must be given for a dataset without end. "
            "Received: steps_per_epoch=None. It counts outer iterations."
        )
    return math.ceil(inner.batches_per_pass / num_steps)


def level_data(
    name, x, y=None, sample_weight=None, *, batch_size, shuffle=True, seed=0
) -> ArrayData | StreamData:
    """`ArrayData` or `StreamData`, from what a Keras user passes to `fit`.

    Raises:
        ValueError: If an argument does not go with a dataset, if targets are
            missing, or for the reasons that the two classes name.
    """
    if isinstance(x, tf.data.Dataset):
        for argument, value in (
            ("y", y),
            ("sample_weight", sample_weight),
            ("batch_size", batch_size),
        ):
            if value is not None:
                raise ValueError(
                    f"`{argument}` cannot be given where `{name}` is a "
                    f"`tf.data.Dataset`. Received: {argument}={value!r:.80}. "
                    "The dataset's elements are batches (x, y) or "
                    "(x, y, sample_weight)."
                )
        return StreamData(name, x)
    if x is None or y is None:
        raise ValueError(
            f"`{name}` must consist of inputs and targets. Received: "
            f"x={'None' if x is None else 'given'}, "
            f"y={'None' if y is None else 'given'}."
        )
    examples = (x, y) if sample_weight is None else (x, y, sample_weight)
    return ArrayData(name, examples, batch_size, shuffle, seed)


def check_same_structure(training, outer) -> None:
    """Checks that both levels feed the same model.

    Raises:
        ValueError: If inputs or targets differ in structure, in the shape of
            an example or in kind of number.
    """
    for part, a, b in zip(
        ("inputs", "targets"), training.spec, outer.spec, strict=False
    ):
        try:
            tf.nest.assert_same_structure(a, b)
            # Targets of either kind of number may serve one loss.
            same = all(
                s.shape.as_list() == t.shape.as_list()
                and (
                    part == "targets"
                    or s.dtype.is_floating == t.dtype.is_floating
                )
                for s, t in zip(
                    tf.nest.flatten(a), tf.nest.flatten(b), strict=True
                )
            )
        except (TypeError, ValueError):
            same = False
        if not same:
            raise ValueError(
                f"The {part} of `outer_data` must have the structure, shape "
                "and kind of number of those of the training data. "
                f"Received: outer_data {part}={b}, training {part}={a}."
            )


def split_off(examples: tuple, fraction: float, name: str) -> tuple:
    """Cuts the last part off a tuple of arrays, as Keras does for validation.

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


def weights_of_classes(y, class_weight: dict) -> np.ndarray:
    """One weight per example, from a weight per class.

    Args:
        y: Array of integer classes, `(n,)` or `(n, 1)`, or one-hot, `(n, k)`.
        class_weight: Dictionary from class to weight; 1 where it has none.
    """
    if isinstance(y, dict | list | tuple):
        raise ValueError(
            "`class_weight` needs one array of targets. "
            f"Received: targets of type {type(y).__name__}. Pass "
            "`sample_weight` instead."
        )
    y = np.asarray(y)
    classes = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(-1)
    return np.array(
        [class_weight.get(int(c), 1.0) for c in classes], keras.config.floatx()
    )
