"""What every kind of data for one level offers.

One outer iteration takes as many inner batches, and as many outer batches, as
its chain has steps. A level of data hands them out stacked, chain by chain.

TensorFlow keeps the Python functions of a dataset for ever. Those of a level
hold numbers, or the level by a weak reference: it has to be kept as long as
its chains are drawn.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld.data.elements import flat
from keras_hposgld.data.elements import packed


class Level(abc.ABC):
    """The data of one level.

    Attributes:
        name: What the user calls this data, for messages.
        batch_size: Integer, the examples of a batch.
        shapes: List of tuples: the shapes of the tensors of a batch, in the
            order of `tf.nest.flatten`, with `None` where batches may differ.
        fault: String: why the data cannot go on; `None` where they can.
    """

    name: str
    batch_size: int
    shapes: list[tuple]
    fault: str | None = None

    @property
    def spec(self) -> Any:
        """Structure of `tf.TensorSpec`s of a batch, its length left open."""
        first = self.first_batch()
        return packed(
            first,
            [
                tf.TensorSpec(shape, part.dtype)
                for part, shape in zip(flat(first), self.shapes, strict=True)
            ],
        )

    @property
    @abc.abstractmethod
    def batches_per_pass(self) -> float:
        """Batches in one pass over the data; infinity where it never ends."""

    @property
    def num_known(self) -> float:
        """How many examples there are, as far as that costs no reading.

        Infinity where they would have to be counted, or never end.
        """
        return self.batches_per_pass * self.batch_size

    def count_examples(self) -> float:
        """How many examples there are in one pass, by reading if need be.

        Infinity where it never ends, or where reading takes too long.
        """
        number = self.num_known
        return number if math.isinf(number) else round(number)

    def whole(self) -> tuple | None:
        """All examples as one batch; `None` where a batch holds fewer."""
        return self.first_batch() if self.batches_per_pass <= 1 else None

    def join(self) -> None:  # noqa: B027 - most hold them already
        """Makes the batches hold all examples, where `whole` returned them."""

    @abc.abstractmethod
    def first_batch(self) -> tuple:
        """The first batch, for building and for measuring."""

    def some_examples(self, number: int) -> tuple:
        """A batch of that many examples at most, without reading on."""
        return first_rows(self.first_batch(), number)

    @abc.abstractmethod
    def chains(
        self,
        num_steps: int,
        first: Callable[[], int] = lambda: 0,
        keeps_lengths: bool = True,
    ) -> tf.data.Dataset:
        """Batches on a new leading axis, for one chain after the other.

        Args:
            num_steps: Integer, the batches of a chain.
            first: Function that returns how many chains were drawn before. It
                is called when the dataset is iterated over. Data without an
                order of their own follow it; others begin at their beginning.
            keeps_lengths: Whether batches of different length come as
                `padding.Padded`, not as the padded tensors alone.
        """

    def num_stacked(self, num_steps: int) -> int:
        """How many batches `chains` stacks: one, if it serves all steps."""
        return num_steps

    def end_mark(self) -> str:
        """What TensorFlow's error says where these data have ended."""
        return f"`{self.name}` has ended"


def first_rows(batch: Any, number: int) -> Any:
    """The first examples of a batch."""
    return tf.nest.map_structure(
        lambda part: None if part is None else part[:number], batch
    )


def check_same_structure(
    training: Level, outer: Level, but_targets: bool = False
) -> None:
    """Checks that two levels feed the same model.

    Args:
        training: The inner level.
        outer: The outer level.
        but_targets: Whether their targets may differ.

    Raises:
        ValueError: If inputs or targets differ in structure, in the shape of
            an example or in kind of number.
    """
    for part, a, b in zip(
        ("inputs",) if but_targets else ("inputs", "targets"),
        training.spec,
        outer.spec,
        strict=False,
    ):
        if not _is_alike(a, b, any_number=part == "targets"):
            raise ValueError(
                f"The {part} of `outer_data` must have the structure, shape "
                "and kind of number of those of the training data. "
                f"Received: outer_data {part}={b}, training {part}={a}."
            )


def _is_alike(a, b, any_number):
    """Whether two structures of specs are; targets of either kind may be."""
    try:
        tf.nest.assert_same_structure(a, b)
    except (TypeError, ValueError):
        return False
    return all(
        (s is None) == (t is None)
        and (
            s is None
            or s.shape.is_compatible_with(t.shape)
            and (any_number or s.dtype.is_floating == t.dtype.is_floating)
        )
        for s, t in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True)
    )
