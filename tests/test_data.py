"""Which examples are drawn when, and what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from keras_hposgld import levels
from keras_hposgld.data import ArrayData
from keras_hposgld.data import StreamData


def drawn(data, num_steps, num_chains, first=0):
    """The first inputs of the stacked batches, as one array."""
    chains = data.chains(num_steps, lambda: first).take(num_chains)
    return np.stack([x.numpy() for x, *_ in chains])


def numbered(n=10, **arguments):
    x = np.arange(n, dtype="float32")
    arguments = {"batch_size": 4, "seed": 3} | arguments
    return ArrayData("x", (x, -x), **arguments)


def test_every_pass_sees_each_example_once_in_another_order():
    order = drawn(numbered(), num_steps=5, num_chains=2).reshape(-1)
    passes = order.reshape(4, 10)
    for one in passes:
        assert sorted(one) == list(range(10))
    assert len({tuple(one) for one in passes}) == 4


def test_order_depends_on_seed_and_chain_number_alone():
    whole = drawn(numbered(), num_steps=3, num_chains=4)
    np.testing.assert_array_equal(
        drawn(numbered(), num_steps=3, num_chains=2, first=2), whole[2:]
    )
    other = drawn(numbered(seed=4), num_steps=3, num_chains=4)
    assert np.any(other != whole)


def test_without_shuffling_the_order_is_that_of_the_arrays():
    order = drawn(numbered(shuffle=False), num_steps=5, num_chains=1)
    np.testing.assert_array_equal(order.reshape(-1), [*range(10)] * 2)


def test_inputs_and_targets_stay_together():
    for x, y in numbered().chains(3).take(2):
        np.testing.assert_array_equal(x, -y)


def test_batch_is_no_larger_than_the_data():
    assert numbered(3, batch_size=100).batch_size == 3
    assert numbered(100, batch_size=None).batch_size == 32


def test_dataset_is_repeated_and_cut_into_equal_batches():
    dataset = tf.data.Dataset.from_tensor_slices(
        (np.arange(10.0), np.arange(10.0))
    ).batch(4)
    data = StreamData("x", dataset)
    assert data.batches_per_pass == 3
    order = drawn(data, num_steps=5, num_chains=2)
    assert order.shape == (2, 5, 4)
    np.testing.assert_array_equal(order.reshape(-1), [*range(10)] * 4)


@pytest.mark.parametrize("num_steps, chains", [(1, 3), (2, 2), (3, 1), (20, 1)])
def test_epoch_is_one_pass_rounded_up(num_steps, chains):
    assert levels.chains_per_pass(numbered(), num_steps) == chains


def test_dataset_of_unknown_length_is_counted_and_endless_one_refused():
    dataset = tf.data.Dataset.range(7).map(lambda n: (n, n)).batch(2)
    unknown = StreamData("x", dataset.filter(lambda x, y: x[0] < 4))
    assert levels.chains_per_pass(unknown, 1) == 2
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        levels.chains_per_pass(StreamData("x", dataset.repeat()), 1)


def test_class_weights_become_sample_weights():
    weights = levels.weights_of_classes
    labels = np.array([0, 2, 1, 2])
    expected = [1.0, 3.0, 0.5, 3.0]
    class_weight = {1: 0.5, 2: 3.0}
    for y in (labels, labels[:, None], np.eye(3)[labels]):
        np.testing.assert_array_equal(weights(y, class_weight), expected)


def read(x=None, y=None, sample_weight=None, **arguments):
    return levels.from_fit_arguments((x, y, sample_weight), **arguments)


def test_splits_are_taken_from_the_end():
    x = np.arange(100.0)
    inner, outer, validation = read(
        x, x, validation_split=0.2, outer_split=0.25, shuffle=False
    )
    np.testing.assert_array_equal(inner.examples[0], x[:60])
    np.testing.assert_array_equal(outer.examples[0], x[60:80])
    np.testing.assert_array_equal(validation[0], x[80:])


X, Y = np.ones((6, 2)), np.ones((6, 1))
STREAM = tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(x=X, y=Y), "`outer_data` must be given"),
        (
            dict(x=X, y=Y, outer_data=(X, Y), outer_split=0.5),
            "`outer_data` and `outer_split` exclude",
        ),
        (dict(x=X, y=Y, outer_split=1.5), "`outer_split` must leave"),
        (dict(x=X, y=Y, outer_split=-0.5), "`outer_split` must leave"),
        (dict(x=X, y=Y, outer_data=(X[:0], Y[:0])), "at least one example"),
        (dict(x=X, y=Y, outer_data=(X, Y[:4])), "must have one length"),
        (dict(x=X, y=Y, outer_data=X), "must consist of inputs and targets"),
        (dict(x=X, outer_data=(X, Y)), "`x` must consist of inputs and targe"),
        (
            dict(x=X, y=Y, outer_data=(X[:, :1], Y)),
            "The inputs of `outer_data` must have",
        ),
        (
            dict(x=X, y=Y, outer_data=(X, Y[:, 0])),
            "The targets of `outer_data` must have",
        ),
        (
            dict(x={"a": X}, y=Y, outer_data=(X, Y)),
            "The inputs of `outer_data` must have",
        ),
        (dict(x=X, y=Y, outer_data=STREAM.take(0)), "at least one batch"),
        (
            dict(
                x=X, y=Y, outer_data=STREAM.unbatch().map(lambda x, y: (x, 1))
            ),
            "must be a dataset of batches",
        ),
        (dict(x=STREAM, y=Y, outer_data=STREAM), "`y` cannot be given where"),
        (
            dict(x=STREAM, outer_data=STREAM, batch_size=3),
            "`batch_size` cannot be given where",
        ),
        (
            dict(x=STREAM, outer_data=STREAM, class_weight={0: 2.0}),
            "`class_weight` needs arrays",
        ),
        (dict(x=STREAM, outer_split=0.5), "`outer_split` needs arrays"),
        (
            dict(
                x=X,
                y=Y,
                sample_weight=Y[:, 0],
                class_weight={1: 2.0},
                outer_data=(X, Y),
            ),
            "`class_weight` and `sample_weight` exclude",
        ),
        (
            dict(x=X, y=Y, outer_data=(X, Y), batch_size=0),
            "`batch_size` must be at least 1",
        ),
    ],
)
def test_bad_data_are_refused_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        read(**arguments)
    assert "Received:" in str(error.value)
