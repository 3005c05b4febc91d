"""Few-shot tasks: what is drawn, in which order, and what is refused."""

import numpy as np
import pytest

import keras_hposgld as hs


def make_data():
    # An image is its own number: class times 100 plus member.
    members = np.arange(8) * 100
    images = (members[:, None] + np.arange(7)).reshape(-1)
    return images.reshape(-1, 1, 1).astype("float32"), images // 100 + 40


def draw(number=3, **arguments):
    defaults = dict(
        ways=3, shots=2, queries=4, meta_batch_size=5, num_batches=number
    )
    return list(
        hs.data.episodes(
            *make_data(), **(defaults | arguments)
        ).as_numpy_iterator()
    )


def test_shapes_and_length():
    for (xs, ys), (xq, yq) in draw():
        assert xs.shape == (5, 6, 1, 1) and ys.shape == (5, 6)
        assert xq.shape == (5, 12, 1, 1) and yq.shape == (5, 12)
    tasks = hs.data.episodes(*make_data(), ways=2, num_batches=7)
    assert int(tasks.cardinality()) == len(list(tasks)) == 7


def test_a_label_stands_for_one_class_in_support_and_query():
    for (xs, ys), (xq, yq) in draw():
        for task in range(5):
            support, query = xs[task].ravel(), xq[task].ravel()
            assert not set(support) & set(query)
            assert len(set(support)) == 6 and len(set(query)) == 12
            classes = {}
            for image, label in zip(
                [*support, *query], [*ys[task], *yq[task]], strict=True
            ):
                classes.setdefault(label, set()).add(int(image) // 100)
            assert set(classes) == {0, 1, 2}
            assert all(len(found) == 1 for found in classes.values())
            assert len(set.union(*classes.values())) == 3


def test_all_classes_and_examples_are_drawn_alike():
    counts = np.zeros(800)
    for (xs, _), (xq, _) in draw(200):
        numbers = np.concatenate([xs.ravel(), xq.ravel()]).astype(int)
        np.add.at(counts, numbers, 1)
    counts = counts.reshape(8, 100)[:, :7]
    # 1000 tasks: a class is in 3/8 of them, one of its members in 6/7.
    expected, share = 1000 * 3 / 8 * 6 / 7, 3 / 8 * 6 / 7
    deviation = np.sqrt(1000 * share * (1 - share))
    assert np.abs(counts - expected).max() < 4.5 * deviation


def test_what_is_drawn_depends_on_seed_and_number_alone():
    first, again, other = draw(), draw(), draw(seed=1)
    later = draw(2, first_batch=1)
    for expected, found in ((first, again), (first[1:], later)):
        for a, b in zip(expected, found, strict=True):
            np.testing.assert_array_equal(a[0][0], b[0][0])
            np.testing.assert_array_equal(a[1][0], b[1][0])
    assert not np.array_equal(first[0][0][0], other[0][0][0])
    assert not np.array_equal(first[0][0][0], first[1][0][0])


def test_small_classes_are_left_out():
    images, labels = make_data()
    labels = np.where(images[:, 0, 0] < 3, 0, labels)  # three of class 40
    for (xs, _), _ in hs.data.episodes(
        images, labels, ways=7, shots=1, queries=5, num_batches=20
    ).as_numpy_iterator():
        assert xs.min() >= 100


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(ways=1), "`ways` must be at least 2"),
        (dict(shots=0), "`shots` must be at least 1"),
        (dict(queries=1.5), "`queries` must be an integer"),
        (dict(meta_batch_size=0), "`meta_batch_size` must be at least 1"),
        (dict(num_batches=-1), "`num_batches` must be at least 0"),
        (dict(first_batch=-1), "`first_batch` must be at least 0"),
        (dict(seed=-1), "`seed` must be an integer from 0"),
        (dict(seed=None), "`seed` must be an integer from 0"),
        (dict(ways=9), "at least 9 classes"),
        (dict(shots=4), "at least 8 examples"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(**arguments)
    with pytest.raises(ValueError, match="one length"):
        hs.data.episodes(np.zeros((3, 2)), np.zeros(4))
