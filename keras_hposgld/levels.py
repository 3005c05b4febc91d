"""From what a user passes to `BilevelModel.fit` to the two levels of data."""

import math

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.data.kinds import level_data
from keras_hposgld.data.kinds import yields_batches


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
    input_ranks=None,
    example_weights=None,
) -> tuple:
    """Reads the data arguments of `BilevelModel.fit`, see there.

    Args:
        examples: Tuple `(x, y, sample_weight)` of the training data.
        input_ranks: List of integers, the ranks of the model's inputs, or
            `None` where they are not known yet.
        example_weights: `ExampleWeights` or `None`. With it, the third part
            of an inner batch are the indices of its examples.

    Returns:
        Inner data, outer data and validation data.

    Raises:
        ValueError: If outer data are missing, given twice, empty, or of
            another structure than the training data; if an argument does not
            go with a kind of data.
    """
    examples = as_arrays(examples)
    if yields_batches(examples[0]):
        for argument, value in (
            ("validation_split", validation_split),
            ("outer_split", outer_split),
        ):
            if value:
                raise ValueError(
                    f"`{argument}` needs arrays. Received: "
                    f"{argument}={value!r} and a "
                    f"{type(examples[0]).__name__}. Split the data yourself."
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
    if outer_data is None:
        raise ValueError(
            "`outer_data` must be given: the hyperparameters are learned on "
            "examples that the weights are not trained on. "
            "Received: outer_data=None. Pass `outer_data=(x, y)` or "
            "`outer_split=0.2`."
        )
    if example_weights is not None:
        examples = with_indices(examples, example_weights.num_examples)
    inner = level_data(
        "x",
        *examples,
        batch_size=batch_size,
        shuffle=shuffle,
        seed=seed,
        input_ranks=input_ranks,
        class_weight=class_weight,
    )
    outer = level_data(
        "outer_data",
        *keras.utils.unpack_x_y_sample_weight(as_arrays(outer_data)),
        batch_size=outer_batch_size,
        default_batch_size=batch_size,
        shuffle=shuffle,
        seed=seed + 1,
        input_ranks=input_ranks,
    )
    check_same_structure(inner, outer)
    if example_weights is not None:
        check_indices(inner)
    return inner, outer, validation_data


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


def check_indices(inner) -> None:
    """Checks that a batch says which examples it holds.

    Raises:
        ValueError: If its third part is missing, or no integers.
    """
    indices = inner.spec[2:]
    if not indices or not getattr(indices[0], "dtype", tf.string).is_integer:
        raise ValueError(
            "With `example_weights`, the batches of `x` must be "
            "(inputs, targets, indices), the indices integers. Received: "
            f"batches like {inner.spec}. Add the position of each example, "
            "for instance with `tf.data.Dataset.enumerate`."
        )


class FirstChain(keras.callbacks.Callback):
    """How many chains were drawn before this `fit`, as a function.

    It is read when training begins: by then a callback before this one may
    have restored the model from a backup. Later would be too late: within a
    compiled step the counter may move before the first batch is asked for.
    """

    def on_train_begin(self, logs=None):
        self.number = int(self.model.outer_iterations.numpy())

    def __call__(self) -> int:
        return self.number


def chains(data: list, num_steps: int, first) -> tf.data.Dataset:
    """Dataset of tuples: the stacked batches of one chain, a level each.

    While a chain is sampled the batches of the next one are made, and no more:
    those of a long chain take a lot of memory.

    Args:
        data: List of levels, of any kind of data.
        num_steps: Integer, the length of a chain.
        first: Function that returns the number of chains drawn before. It is
            called when the dataset is iterated over.
    """
    stacked = tuple(level.chains(num_steps, first) for level in data)
    return tf.data.Dataset.zip(stacked).prefetch(1)


def size_of_chains(data: list, num_steps: int) -> int:
    """The bytes of the batches of two chains: of one, and of the next.

    Args:
        data: List of levels, of any kind of data.
        num_steps: Integer, the length of a chain.
    """
    first = tf.nest.flatten([level.first_batch() for level in data])
    return 2 * num_steps * sum(np.asarray(part).nbytes for part in first)


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
