"""Batches that come in an order of their own: datasets and generators."""

import itertools
import math
import time

import tensorflow as tf

from keras_hposgld.data import batches
from keras_hposgld.data.elements import as_batch
from keras_hposgld.data.elements import flat
from keras_hposgld.data.elements import is_batch
from keras_hposgld.data.elements import length_of
from keras_hposgld.data.elements import packed

# How long the batches of a dataset may be counted. One that has no end must
# not be counted for ever, and nobody waits longer without a word.
COUNTING_SECONDS = 10.0


class StreamData(batches.BatchedData):
    """Batches of one level from a `tf.data.Dataset`, repeated without end.

    Args:
        name: What the user calls this data, for messages.
        dataset: Dataset of batches `(x,)`, `(x, y)` or `(x, y,
            sample_weight)`, or of single examples.
        batch_size: Integer, for a dataset of single examples.
        inputs: See `elements.inputs_of`: tells batches and examples apart
            where the shapes of the elements do not.
        default_batch_size: Integer, for single examples where `batch_size` is
            not given; `None` for 32.
        prepare: Function of the parts of a batch, applied to each batch.
        needs_targets: As in `elements.as_batch`.

    Raises:
        ValueError: If the dataset is empty, if its elements are neither
            batches nor examples, or may be both, or if `batch_size` is given
            for batches.
    """

    def __init__(
        self,
        name,
        dataset,
        batch_size=None,
        inputs=None,
        *,
        default_batch_size=None,
        prepare=None,
        needs_targets=True,
    ):
        element = next(iter(dataset), None)
        if element is None:
            raise ValueError(
                f"`{name}` must hold at least one batch. "
                "Received: an empty dataset."
            )
        first = as_batch(name, element, needs_targets)
        spec = as_batch(name, dataset.element_spec, needs_targets=False)
        spec = spec[: len(first)]
        if not is_batch(name, first, spec, inputs, batch_size is not None):
            dataset = _batched(
                dataset,
                spec,
                batches.checked_batch_size(
                    default_batch_size if batch_size is None else batch_size
                ),
            )
            first = as_batch(name, next(iter(dataset)), needs_targets)
            spec = dataset.element_spec
            spec = as_batch(name, spec, needs_targets=False)[: len(first)]
        elif batch_size is not None:
            raise ValueError(
                f"`batch_size` cannot be given where `{name}` is a "
                f"`tf.data.Dataset` of batches. Received: {batch_size}, and "
                f"batches of {length_of(name, first)}. Leave it out, "
                "or pass a dataset of single examples."
            )
        super().__init__(name, [first], inputs, spec)
        self.dataset = dataset
        self._prepare = prepare
        self._element_shapes = self.shapes
        if prepare is not None:
            # It needs to know the targets' shape, and adds weights of one axis.
            number = len(flat(first[0]))
            self._element_shapes = self.shapes[:number] + [
                (None, *part.shape[1:]) for part in flat(first)[number:]
            ]
            self.shapes = [*self._element_shapes, (None,)]
            self._first = prepare(*first)

    @property
    def batches_per_pass(self) -> float:
        """Number of batches in the dataset; infinity where it never ends.

        Raises:
            ValueError: If it has to be counted, and that takes too long.
        """
        cardinality = int(self.dataset.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            return math.inf
        if cardinality == tf.data.UNKNOWN_CARDINALITY:
            return float(self._counted())
        return float(cardinality)

    @property
    def num_known(self) -> float:
        number = int(self.dataset.cardinality())
        return number * self.batch_size if number >= 0 else math.inf

    def count_examples(self) -> float:
        if self.dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
            return math.inf

        def length(*element):  # the last batch may be shorter
            batch = as_batch(self.name, element, needs_targets=False)
            return tf.shape(flat(batch)[0])[0]

        number, has_ended = _sum_of(self.dataset.map(length))
        return number if has_ended else math.inf

    def _counted(self):
        number, has_ended = _sum_of(self.dataset.map(lambda *_: 1))
        if not has_ended:
            raise ValueError(
                "`steps_per_epoch` must be given for a dataset that does "
                "not know its length, such as one from a generator. "
                f"Received: steps_per_epoch=None; `{self.name}` had no "
                f"end after {number} batches, {COUNTING_SECONDS:.0f} s of "
                "counting. It counts outer iterations. Or use "
                "`tf.data.experimental.assert_cardinality`."
            )
        return number

    def chains(self, num_steps, first=lambda: 0, keeps_lengths=True):
        """Stacked batches for one chain after the other.

        The dataset is read from its beginning, whatever `first` is. Batches
        are cut anew across passes, so that a short last one does no harm.
        """
        del first
        name, shapes, prepare = self.name, self._element_shapes, self._prepare

        def flattened(*element):
            # A dataset of inputs alone passes them as one argument.
            batch = as_batch(name, element, needs_targets=False)
            # A generator may not say what its elements look like.
            tensors = [
                tf.ensure_shape(tensor, shape)
                for tensor, shape in zip(flat(batch), shapes, strict=True)
            ]
            if prepare is not None:
                tensors = flat(prepare(*packed(batch, tensors)))
            return tuple(tensors)

        repeated = self.dataset.map(flattened).repeat()
        return self.stacked(repeated, num_steps, keeps_lengths)


class GeneratorData(batches.BatchedData):
    """Batches of one level from a Python generator, which is read once.

    Args:
        name: What the user calls this data, for messages.
        generator: Iterator of batches `(x,)`, `(x, y)` or `(x, y,
            sample_weight)`.
        prepare: Function applied to each batch.
        inputs: See `elements.inputs_of`.
        needs_targets: As in `elements.as_batch`.

    Raises:
        ValueError: If it yields nothing, or something else than batches.
    """

    batches_per_pass = math.inf

    def __init__(
        self,
        name,
        generator,
        prepare=lambda batch: batch,
        inputs=None,
        needs_targets=True,
    ):
        def read(element):
            batch = batches.standardized(element)
            return prepare(as_batch(name, batch, needs_targets))

        following = map(read, generator)
        seen = list(itertools.islice(following, 2))
        if not seen:
            raise ValueError(
                f"`{name}` must yield at least one batch. "
                "Received: a generator with nothing (left) in it."
            )
        for batch in seen:
            length_of(name, batch)
        super().__init__(name, seen, inputs)
        self._generator = itertools.chain(seen, following)

    def chains(self, num_steps, first=lambda: 0, keeps_lengths=True):
        """Stacked batches for one chain after the other, until it ends."""
        del first
        read = tf.data.Dataset.from_generator(
            batches.weakly(self._tensors), output_signature=self.flat_spec
        )
        return self.stacked(read, num_steps, keeps_lengths)

    def _tensors(self):
        for batch in self._generator:
            yield self.checked(batch)


def _batched(examples, spec, batch_size):
    """Batches of single examples, filled up with zeros to one length."""
    parts = tf.nest.flatten(spec)
    if all(
        part.shape.is_fully_defined() or part.shape.rank is None
        for part in parts
        if isinstance(part, tf.TensorSpec)
    ):
        return examples.batch(batch_size)
    return examples.padded_batch(batch_size)


def _sum_of(numbers):
    """The sum of a dataset of integers, and whether it ended in time."""
    deadline = time.monotonic() + COUNTING_SECONDS
    total = 0
    for number in numbers:
        total += int(number)
        if time.monotonic() > deadline:
            return total, False
    return total, True
