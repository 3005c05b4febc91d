"""The data of one `fit`: from a user's arguments to stacked batches."""

import contextlib
import math
import warnings
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.data.elements import flat
from keras_hposgld.data.examples import check_splits
from keras_hposgld.data.examples import split_off
from keras_hposgld.data.folds import folded
from keras_hposgld.data.kinds import level_data
from keras_hposgld.data.learned_weights import check_sources
from keras_hposgld.data.learned_weights import with_keys
from keras_hposgld.data.level import check_same_structure
from keras_hposgld.data.level import Level
from keras_hposgld.data.splits import fold_numbers
from keras_hposgld.data.splits import split_examples


class FitData:
    """The levels of data of one `fit`, and every answer about them.

    Args:
        levels: List of `Level`s: the inner one, then the outer one; or one of
            them alone.
        validation_data: As Keras takes it, or `None`.
        num_folds: Integer: of how many folds the levels hold the examples, on
            the leading axis of their chains. Defaults to `1`, without that
            axis.
        has_votes: Whether the targets of the first level are votes on them.

    Raises:
        ValueError: If two levels do not feed the same model.
    """

    def __init__(
        self,
        levels: list[Level],
        validation_data: Any = None,
        num_folds: int = 1,
        has_votes: bool = False,
    ):
        if len(levels) == 2:
            training, outer = levels
            check_same_structure(training, outer, but_targets=has_votes)
        self.levels = levels
        self.validation_data = validation_data
        self.num_folds = num_folds

    @classmethod
    def from_fit(
        cls,
        examples: tuple,
        *,
        outer_data: Any = None,
        outer_split: float = 0.0,
        outer_folds: int = 0,
        validation_data: Any = None,
        validation_split: float = 0.0,
        outer_batch_size: int | None = None,
        example_weights: Any = None,
        sources: Any = None,
        class_weight: dict | None = None,
        seed: int = 0,
        needs_targets: tuple[bool, bool] = (True, True),
        needs_outer: bool = True,
        **arguments: Any,
    ) -> "FitData":
        """Reads the data arguments of `BilevelModel.fit`, see there.

        Args:
            examples: Tuple `(x, y, sample_weight)` of the training data.
            outer_folds: Integer, the folds; 0 for none.
            example_weights: `BatchWeights` or `None`. With them, the third
                part of an inner batch holds the keys of its examples.
            sources: As in `BilevelModel.fit`.
            needs_targets: Whether the inner and the outer objective do.
            needs_outer: Whether there is an outer level.
            **arguments: `batch_size`, `shuffle` and `inputs`, as in
                `level_data`.

        Raises:
            ValueError: If outer data are missing, given twice, empty, or of
                another structure than the training data; if an argument does
                not go with a kind of data.
        """
        examples = as_arrays(examples)
        splits = dict(outer_split=outer_split, outer_folds=outer_folds)
        shares = splits | dict(validation_split=validation_split)
        check_splits(examples, **shares)
        check_sources(sources, example_weights, **shares)
        if validation_split and validation_data is None:
            examples, validation_data = split_off(
                examples, validation_split, "validation_split"
            )
        if needs_outer:
            examples, outer_data = _split(
                *(examples, outer_data, outer_split, outer_folds, seed)
            )
        has_votes = False
        examples = with_keys(examples, example_weights, sources, class_weight)
        inner = level_data(
            "x",
            *examples,
            class_weight=class_weight,
            seed=seed,
            needs_targets=needs_targets[0],
            **arguments,
        )
        if example_weights is not None:
            example_weights.check_batch(inner.spec, sources)
            has_votes = example_weights.has_votes(sources)
        if not needs_outer:
            return cls([inner], validation_data)
        outer = level_data(
            "outer_folds" if outer_folds else "outer_data",
            *keras.utils.unpack_x_y_sample_weight(as_arrays(outer_data)),
            batch_size=outer_batch_size,
            default_batch_size=arguments.pop("batch_size", None),
            seed=seed + 1,
            needs_targets=needs_targets[1],
            **arguments,
        )
        if not outer_folds:
            return cls([inner, outer], validation_data, has_votes=has_votes)
        fold_of = fold_numbers(examples, outer_folds, "outer_folds", seed)
        return cls(folded(inner, outer, fold_of), validation_data, outer_folds)

    @property
    def batch_sizes(self) -> dict[str, int]:
        """The examples of a batch of each level, by its name."""
        return {level.name: level.batch_size for level in self.levels}

    def first_batch(self) -> tuple:
        """The first batch of the first level, for building the model."""
        return self.levels[0].first_batch()

    def chains(
        self,
        num_steps: int,
        first: Callable[[], int],
        keeps_lengths: bool = True,
    ) -> tf.data.Dataset:
        """Dataset of tuples: the stacked batches of one chain, a level each.

        While a chain is sampled the batches of the next one are made, and no
        more: those of a long chain take a lot of memory. This object has to
        be kept as long as chains are drawn.

        Args:
            num_steps: Integer, the length of a chain.
            first: Function that returns the number of chains drawn before. It
                is called when the dataset is iterated over. TensorFlow keeps
                it for ever, so it must not hold anything large.
            keeps_lengths: Whether batches of different length are cut back to
                their own when they are used, which XLA cannot do.
        """
        if not keeps_lengths:
            self._warn_of_padding()
        stacked = tuple(
            level.chains(num_steps, first, keeps_lengths)
            for level in self.levels
        )
        return tf.data.Dataset.zip(stacked).prefetch(1)

    def _warn_of_padding(self):
        for level in self.levels:
            if getattr(level, "varies", False):
                warnings.warn(
                    f"The batches of `{level.name}` may differ in length. "
                    "Compiled by XLA, those of a chain are filled up with "
                    "zeros to one length, which the model has to mask. "
                    "`jit_compile=False` takes each at its own length.",
                    stacklevel=2,
                )

    @contextlib.contextmanager
    def explains_its_end(self, count: Callable[[], int]) -> Iterator[None]:
        """Says which data came to an end, where TensorFlow has an error.

        Args:
            count: Function to the number of chains that were drawn.

        Raises:
            RuntimeError: If data ended.
            ValueError: If a batch was not like the first one.
        """
        try:
            yield
        except tf.errors.OpError as error:
            for level in self.levels:
                if level.fault is not None:
                    raise ValueError(level.fault) from error
                if level.end_mark() in str(error):
                    raise RuntimeError(
                        f"`{level.name}` must last until training ends. "
                        "Received: a generator or dataset that ended after "
                        f"{count()} chains. Let it go on, or pass arrays or a "
                        "dataset that can be read again."
                    ) from error
            raise

    def chains_per_epoch(self, num_steps: int) -> int:
        """How many chains see the inner data once, rounded up.

        Raises:
            ValueError: If the data never end.
        """
        batches_per_pass = self.levels[0].batches_per_pass
        if math.isinf(batches_per_pass):
            raise ValueError(
                "`steps_per_epoch` must be given for a dataset without end. "
                "Received: steps_per_epoch=None. It counts batches."
            )
        return math.ceil(batches_per_pass / num_steps)

    def bytes_of(self, num_steps: int) -> int:
        """The bytes of the batches of two chains: of one, and of the next."""
        return sum(
            2 * self.num_folds * level.num_stacked(num_steps) * part.nbytes
            for level in self.levels
            for part in map(np.asarray, flat(level.first_batch()))
        )


def _split(examples, outer_data, outer_split, outer_folds, seed):
    """Draws the outer data from the training data, where asked for.

    With folds all examples are both, since they are divided afterwards.

    Returns:
        The training examples and the outer data.
    """
    if outer_folds:
        return examples, examples
    if outer_split:
        if outer_data is not None:
            raise ValueError(
                "`outer_data` and `outer_split` exclude each other. "
                f"Received: both, outer_split={outer_split}."
            )
        return split_examples(examples, outer_split, "outer_split", seed=seed)
    if outer_data is None:
        raise ValueError(
            "`outer_data` must be given: the hyperparameters are learned "
            "on examples that the weights are not trained on. "
            "Received: outer_data=None. Pass `outer_data=(x, y)` or "
            "`outer_split=0.2`, or `outer_folds=5` where examples are few."
        )
    return examples, outer_data
