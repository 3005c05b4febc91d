"""Batches that come in an order of their own: datasets and generators."""

import itertools
import math

import tensorflow as tf

from keras_hposgld.data import batches


class StreamData(batches.BatchedData):
    """Batches of one level from a `tf.data.Dataset`, repeated without end.

    Args:
        name: What the user calls this data, for messages.
        dataset: Dataset of batches `(x, y)` or `(x, y, sample_weight)`, or of
            single examples.
        batch_size: Integer, for a dataset of single examples.
        default_batch_size: Likewise, where none is given; `None` for 32.
        input_ranks: List of integers, the ranks of the model's inputs, or
            `None` where they are not known yet: tells batches and examples
            apart where the shapes of the elements do not.
        prepare: Function of the parts of a batch, applied to each batch.

    Raises:
        ValueError: If the dataset is empty, if its elements are neither
            batches nor examples, or if `batch_size` is given for batches.
    """

    def __init__(
        self,
        name,
        dataset,
        batch_size=None,
        input_ranks=None,
        *,
        default_batch_size=None,
        prepare=None,
    ):
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError(
                f"`{name}` must hold at least one batch. "
                "Received: an empty dataset."
            )
        batches.check_element(name, first)
        if not is_batch(first, input_ranks):
            dataset = dataset.batch(
                batches.checked_batch_size(
                    default_batch_size if batch_size is None else batch_size
                )
            )
            first = next(iter(dataset))
        elif batch_size is not None:
            raise ValueError(
                f"`batch_size` cannot be given where `{name}` is a "
                f"`tf.data.Dataset` of batches. Received: {batch_size}, and "
                f"batches of {batches.length_of(name, first)}. Leave it out, "
                "or pass a dataset of single examples."
            )
        if prepare is not None:
            dataset, first = dataset.map(prepare), prepare(*first)
        self.dataset = dataset
        super().__init__(name, first)

    @property
    def batches_per_pass(self) -> float:
        """Number of batches in the dataset; infinity where it never ends."""
        cardinality = int(self.dataset.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            return math.inf
        if cardinality == tf.data.UNKNOWN_CARDINALITY:
            return float(self.dataset.reduce(0, lambda n, _: n + 1))
        return float(cardinality)

    def chains(self, num_steps: int, first=lambda: 0) -> tf.data.Dataset:
        """Stacked batches for one chain after the other.

        The dataset is read from its beginning, whatever `first` is. Batches
        are cut anew across passes, so that a short last one does no harm.
        """
        del first

        def with_rank(*batch):
            # A generator may not say what its elements look like.
            def known(tensor, like):
                return tf.ensure_shape(tensor, [None, *like.shape[1:]])

            return tf.nest.map_structure(known, batch, self._first)

        repeated = self.dataset.map(with_rank).repeat()
        return batches.stack(repeated, self.batch_size, num_steps)


class GeneratorData(batches.BatchedData):
    """Batches of one level from a Python generator, which is read once.

    Args:
        name: What the user calls this data, for messages.
        generator: Iterator of batches `(x, y)` or `(x, y, sample_weight)`.
        prepare: Function applied to each batch.

    Raises:
        ValueError: If it yields nothing, or something else than batches.
    """

    batches_per_pass = math.inf

    def __init__(self, name, generator, prepare=lambda batch: batch):
        generator = map(
            lambda batch: prepare(batches.standardized(batch)), generator
        )
        first = next(generator, None)
        if first is None:
            raise ValueError(
                f"`{name}` must yield at least one batch. "
                "Received: a generator with nothing (left) in it."
            )
        super().__init__(name, first)
        self._generator = itertools.chain([first], generator)

    def chains(self, num_steps: int, first=lambda: 0) -> tf.data.Dataset:
        """Stacked batches for one chain after the other, until it ends."""
        del first
        read = tf.data.Dataset.from_generator(
            lambda: self._generator, output_signature=self.spec
        )
        return batches.stack(read, self.batch_size, num_steps)


def is_batch(element: tuple, input_ranks: list[int] | None = None) -> bool:
    """Whether an element of a dataset is a batch, not a single example.

    Args:
        element: Tuple whose first entry are the inputs.
        input_ranks: See `StreamData`.
    """
    shapes = [tuple(tensor.shape) for tensor in tf.nest.flatten(element)]
    if () in shapes or len({shape[0] for shape in shapes}) != 1:
        return False
    ranks = [len(tensor.shape) for tensor in tf.nest.flatten(element[0])]
    return ranks != [rank - 1 for rank in input_ranks or ()]
