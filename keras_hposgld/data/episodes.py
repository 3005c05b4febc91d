"""Few-shot tasks from labelled examples."""

import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_seed


def episodes(
    images: Any,
    labels: Any,
    ways: int = 5,
    shots: int = 1,
    queries: int = 5,
    *,
    meta_batch_size: int = 4,
    num_batches: int | None = None,
    seed: int = 0,
    first_batch: int = 0,
) -> tf.data.Dataset:
    """Draws classification tasks, each among a few classes.

    For each task `ways` classes are drawn, and of each `shots` examples to
    adapt to and `queries` others to be judged on, all without replacement. A
    task's own labels are 0 to `ways - 1`, in random order. What is drawn is a
    function of the seed and of the number of the batch alone.

    Args:
        images: Array `(num_examples, ...)`, the inputs.
        labels: Integer array `(num_examples,)`, the classes.
        ways: Integer `>= 2`, classes of a task. Defaults to `5`.
        shots: Integer `>= 1`, support examples of a class. Defaults to `1`.
        queries: Integer `>= 1`, query examples of a class. Defaults to `5`.
        meta_batch_size: Integer `>= 1`, tasks of a batch. Defaults to `4`.
        num_batches: Integer `>= 0`, batches until the dataset ends; `None`
            (default): it never does.
        seed: Integer `>= 0`.
        first_batch: Integer `>= 0`: the number of the first batch, to go on
            where a run was broken off.

    Returns:
        `tf.data.Dataset` of `((x_support, y_support), (x_query, y_query))`, of
        shapes `(meta_batch_size, ways * shots, ...)`,
        `(meta_batch_size, ways * shots)`, and likewise for the queries.

    Raises:
        ValueError: If a number is out of range, if the lengths differ, or if
            there are fewer than `ways` classes with `shots + queries`
            examples. Classes with fewer examples are left out.

    Reference:
        Vinyals et al., "Matching Networks for One Shot Learning", NeurIPS
        2016.

    Example:

    ```python
    import keras_hposgld as hs
    import numpy as np

    images = np.random.normal(size=(60, 8, 8, 1))
    tasks = hs.data.episodes(images, np.arange(60) % 6, ways=3, queries=2)
    (x_support, y_support), (x_query, y_query) = next(iter(tasks))
    assert x_support.shape == (4, 3, 8, 8, 1)
    assert y_query.shape == (4, 6)
    ```
    """
    ways = check_count("ways", ways, 2)
    shots = check_count("shots", shots, 1)
    queries = check_count("queries", queries, 1)
    meta_batch_size = check_count("meta_batch_size", meta_batch_size, 1)
    if num_batches is not None:
        num_batches = check_count("num_batches", num_batches, 0)
    seed = check_seed("seed", seed)
    first_batch = check_count("first_batch", first_batch, 0)
    images = tf.convert_to_tensor(images)
    needed = shots + queries
    members = _classes(images, labels, ways, needed)

    def task(random):
        chosen = random.permutation(len(members))[:ways]
        return np.stack(
            [random.permutation(members[c])[:needed] for c in chosen]
        )

    def draw():
        for number in itertools.count(first_batch):
            random = np.random.default_rng((seed, number))
            yield np.stack([task(random) for _ in range(meta_batch_size)])

    own_labels = np.repeat(np.arange(ways), needed).reshape(ways, needed)

    def side(indices, begin, end):
        # Way by way in each row: (tasks, ways * number).
        flat = tf.reshape(indices[:, :, begin:end], [meta_batch_size, -1])
        y = np.tile(own_labels[:, begin:end].reshape(-1), (meta_batch_size, 1))
        return tf.gather(images, flat), tf.constant(y)

    drawn = tf.data.Dataset.from_generator(
        draw,
        output_signature=tf.TensorSpec(
            (meta_batch_size, ways, needed), tf.int64
        ),
    )
    dataset = drawn.map(
        lambda indices: (side(indices, 0, shots), side(indices, shots, needed)),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    if num_batches is not None:
        dataset = dataset.take(num_batches)
        # The generator does not say how long it is.
        dataset = dataset.apply(
            tf.data.experimental.assert_cardinality(num_batches)
        )
    return dataset.prefetch(tf.data.AUTOTUNE)


def _classes(images, labels, ways, needed):
    """The indices of the examples of each class that has enough of them."""
    labels = np.asarray(labels).reshape(-1)
    if len(labels) != images.shape[0]:
        raise ValueError(
            "`images` and `labels` must have one length. Received: "
            f"{images.shape[0]} images and {len(labels)} labels."
        )
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members = [indices for indices in members if len(indices) >= needed]
    if len(members) < ways:
        raise ValueError(
            f"`labels` must hold at least {ways} classes (`ways`) of at least "
            f"{needed} examples (`shots + queries`). Received: "
            f"{len(members)} such classes. Use fewer ways, shots or queries."
        )
    return members
