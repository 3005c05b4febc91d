"""Which examples are drawn when, and what is refused."""

import itertools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.data import arrays
from keras_hposgld.data.arrays import ArrayData
from keras_hposgld.data.arrays import drawn_indices
from keras_hposgld.data.elements import is_batch
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.data.kinds import with_class_weights
from keras_hposgld.data.sequences import SequenceData
from keras_hposgld.data.streams import GeneratorData
from keras_hposgld.data.streams import StreamData


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


def test_one_chain_of_arrays_is_made_ahead_and_no_more(monkeypatch):
    read = []

    def counting(chain, *arguments):
        read.append(chain)
        return drawn_indices(chain, *arguments)

    monkeypatch.setattr(arrays, "drawn_indices", counting)
    level = numbered(10, shuffle=False, batch_size=2)
    iterator = iter(FitData([level]).chains(5, lambda: 0))
    for _ in range(3):
        ((x, _),) = next(iterator)
        np.testing.assert_array_equal(x, np.arange(10).reshape(5, 2))
    time.sleep(0.5)  # for what is made meanwhile
    assert read == [0, 1, 2, 3]


def test_one_chain_of_a_generator_is_made_ahead_and_no_more():
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield np.full((2, 1), number), np.zeros((2, 1))

    level = GeneratorData("x", endless())
    iterator = iter(FitData([level]).chains(5, lambda: 0))
    for number in range(3):
        ((x, _),) = next(iterator)
        np.testing.assert_array_equal(
            x[:, 0, 0], np.arange(5 * number, 5 * (number + 1))
        )
    time.sleep(0.5)
    assert 15 <= len(read) <= 22  # two may be read on the way


def test_batch_is_no_larger_than_the_data():
    assert numbered(3, batch_size=100).batch_size == 3
    assert numbered(100, batch_size=None).batch_size == 32


def test_a_batch_of_all_examples_is_stacked_once():
    data = numbered(6, batch_size=6)
    order = drawn(data, num_steps=5, num_chains=2)
    assert order.shape == (2, 1, 6)
    np.testing.assert_array_equal(order, np.broadcast_to(range(6), (2, 1, 6)))
    # Two of them are in memory, of two tensors in float32.
    assert FitData([data]).bytes_of(5) == 2 * 2 * 6 * 4
    assert FitData([numbered(6, batch_size=5)]).bytes_of(5) == 5 * 2 * 2 * 5 * 4


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
    assert FitData([numbered()]).chains_per_epoch(num_steps) == chains


def test_dataset_of_unknown_length_is_counted_and_endless_one_refused():
    dataset = tf.data.Dataset.range(7).map(lambda n: (n, n)).batch(2)
    unknown = StreamData("x", dataset.filter(lambda x, y: x[0] < 4))
    assert FitData([unknown]).chains_per_epoch(1) == 2
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        FitData([StreamData("x", dataset.repeat())]).chains_per_epoch(1)


def test_class_weights_become_sample_weights():
    labels = np.array([0, 2, 1, 2, 3])
    expected = [1.0, 3.0, 0.5, 3.0, 1.0]
    class_weight = {1: 0.5, 2: 3.0}
    for y in (labels, labels[:, None], np.eye(4)[labels]):
        for kind in (np.asarray, tf.constant):
            x, same, weights = with_class_weights(
                (labels, kind(y)), class_weight
            )
            np.testing.assert_array_equal(weights, expected)
            np.testing.assert_array_equal(same, y)
            assert type(weights) is type(kind(y))


def make_sequence(n=10, batch_size=4, **arguments):
    class Numbers(keras.utils.PyDataset):
        def __init__(self):
            super().__init__(**arguments)
            self.ended = 0

        def __len__(self):
            return -(-n // batch_size)

        def __getitem__(self, index):
            x = np.arange(n)[index * batch_size :][:batch_size]
            return x.astype("float64"), [-x]

        def on_epoch_end(self):
            self.ended += 1

    return Numbers()


@pytest.mark.parametrize("workers", [1, 3])
def test_sequence_is_read_in_an_order_that_needs_no_state(workers):
    sequence = make_sequence(workers=workers)
    data = SequenceData("x", sequence, seed=1)
    assert data.batches_per_pass == 2.5
    whole = drawn(data, num_steps=5, num_chains=4)
    assert whole.dtype == np.float32 and whole.shape == (4, 5, 4)
    passes = whole.reshape(8, 10)
    for one in passes:
        assert sorted(one) == list(range(10))
    assert len({tuple(one) for one in passes}) > 2  # of 6 orders of 3 batches
    # Chains of 3 steps end within a pass, and within a batch.
    split = drawn(data, num_steps=3, num_chains=5)
    np.testing.assert_array_equal(
        split.reshape(-1), whole.reshape(-1)[: split.size]
    )
    for first in range(1, 5):
        np.testing.assert_array_equal(
            drawn(data, 3, num_chains=5 - first, first=first), split[first:]
        )
    assert sequence.ended >= 7
    unshuffled = SequenceData("x", sequence, shuffle=False)
    np.testing.assert_array_equal(
        drawn(unshuffled, 5, 1).reshape(-1), [*range(10)] * 2
    )
    # Twelve examples on: in the second pass, within its first batch.
    np.testing.assert_array_equal(
        drawn(unshuffled, 1, 2, first=3).reshape(-1), range(2, 10)
    )


def test_sequence_without_end_goes_on():
    class Endless(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index):
            return np.full(2, index, "float32"), np.zeros(2)

    data = SequenceData("x", Endless())
    assert data.batches_per_pass == np.inf
    order = drawn(data, num_steps=3, num_chains=2, first=4)
    np.testing.assert_array_equal(order[:, :, 0].reshape(-1), range(12, 18))


def test_generator_is_read_once_and_to_its_end():
    generator = ((np.full(2, n), {"a": np.full(2, -n)}) for n in range(8))
    data = GeneratorData("x", generator)
    np.testing.assert_array_equal(data.first_batch()[0], [0, 0])
    first = drawn(data, num_steps=3, num_chains=1)
    np.testing.assert_array_equal(first[0, :, 0], range(3))
    data = GeneratorData("x", iter([(X, Y)] * 7))
    assert drawn(data, num_steps=3, num_chains=2).shape[0] == 2
    with pytest.raises(ValueError, match="must yield at least one batch"):
        GeneratorData("x", iter([]))


def inputs_like(*shapes, names="abcd"):
    return [
        keras.Input(shape, name=name)
        for shape, name in zip(shapes, names, strict=False)
    ]


@pytest.mark.parametrize(
    "x, y, shapes, expected",
    [
        (np.ones((5, 2)), np.ones(5), None, True),
        (np.ones((5, 2)), np.ones(()), None, False),
        (np.ones((5, 2)), np.ones(3), None, False),
        # Only the model can tell one-hot targets of 5 from a batch of 5.
        (np.ones((5, 2)), np.ones(5), [(5, 2)], False),
        (np.ones((5, 2)), np.ones(5), [(None, 2)], False),
        (np.ones((5, 2)), np.ones(5), [(2,)], True),
        # Keras adds the last axis of inputs of one number.
        (np.ones(5), np.ones(5), [(1,)], True),
        (np.ones(5), np.ones(5), [(5,)], False),
        (np.ones((5, 7)), np.ones(5), [(7, 1)], True),
        (np.ones((5, 1)), np.ones(5), [(5, 1)], False),
        ({"a": np.ones(5), "b": np.ones(5)}, np.ones(5), [(5,), (5,)], False),
        ({"a": np.ones(5), "b": np.ones(5)}, np.ones(5), [(1,), (1,)], True),
        ({"a": np.ones(5), "b": np.ones(5)}, np.ones(5), [(), (1,)], True),
        (
            {"b": np.ones((5, 3)), "a": np.ones(5)},
            np.ones(5),
            [(1,), (3,)],
            True,
        ),
        ({"a": np.ones(()), "b": np.ones(3)}, np.ones(3), [(1,), (3,)], False),
    ],
)
def test_examples_and_batches_are_told_apart(x, y, shapes, expected):
    dataset = tf.data.Dataset.from_tensors((x, y)).repeat(7)
    inputs = None if shapes is None else inputs_like(*shapes)
    element = next(iter(dataset))
    assert is_batch("x", element, dataset.element_spec, inputs) is expected
    if expected:
        assert StreamData("x", dataset, None, inputs).batch_size == 5
    else:
        data = StreamData("x", dataset, 3, inputs)
        assert data.batch_size == 3
        assert data.batches_per_pass == 3
        y_batch = next(iter(data.chains(2)))[1]
        assert y_batch.shape == (2, 3, *y.shape)


def test_what_may_be_a_batch_or_an_example_is_asked_about():
    # One example of one number, or a batch of one: the shape is (1,).
    x = np.ones((6, 1))
    examples = slices(x, x)
    inputs = inputs_like((1,))
    with pytest.raises(ValueError, match="may be both. Batch the dataset"):
        StreamData("x", examples, None, inputs)
    assert StreamData("x", examples, 3, inputs).batch_size == 3
    # A batch leaves its length open, unless its remainder is dropped.
    batches = slices(x[:, 0], x[:, 0]).batch(1)
    assert StreamData("x", batches, None, inputs).batch_size == 1
    dropped = slices(x[:, 0], x[:, 0]).batch(1, drop_remainder=True)
    with pytest.raises(ValueError, match="`x` must be either batches or sing"):
        StreamData("x", dropped, None, inputs)


def slices(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays)


def test_batch_size_of_the_outer_level_defaults_to_the_inner_one():
    examples = STREAM.unbatch()
    inputs = inputs_like((2,))
    for outer, given, expected in [
        ((X, Y), None, 2),
        ((X, Y), 5, 5),
        (examples, None, 2),
        (examples, 4, 4),
        (STREAM, None, 3),
        (iter([(X, Y)]), None, 6),
    ]:
        _, outer, _ = read(
            *(X, Y),
            outer_data=outer,
            batch_size=2,
            outer_batch_size=given,
            inputs=inputs,
        )
        assert outer.batch_size == expected


def test_frames_are_taken_as_arrays():
    pandas = pytest.importorskip("pandas", reason="it is what is tested")
    frame = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4, 5, 6]})
    inner, outer, _ = read(
        frame, frame["b"], outer_data=(frame, frame["b"]), shuffle=False
    )
    np.testing.assert_array_equal(inner.examples[0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(outer.examples[1], [4, 5, 6])


def read(x=None, y=None, sample_weight=None, **arguments):
    data = FitData.from_fit((x, y, sample_weight), **arguments)
    return *data.levels, data.validation_data


def test_validation_data_are_the_end_and_outer_data_drawn_from_the_rest():
    x = np.arange(100.0)
    inner, outer, validation = read(
        *(x, x),
        validation_split=0.2,
        outer_split=0.25,
        shuffle=False,
        seed=7,
    )
    (kept, _), (drawn, _) = hs.data.split(x[:80], x[:80], 0.25, seed=7)
    np.testing.assert_array_equal(inner.examples[0], kept)
    np.testing.assert_array_equal(outer.examples[0], drawn)
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
            "The targets of `outer_data` must have",
        ),
        (
            dict(x=X, y=Y, outer_data=STREAM.map(lambda x, y: x)),
            "must be .x, y",
        ),
        (dict(x=X, y=Y, outer_data=iter([(X, 1)])), "must give batches"),
        (dict(x=iter([X]), outer_data=(X, Y)), "must be .x, y"),
        (
            dict(x=make_sequence(0), outer_data=(X, Y)),
            "must hold at least one batch",
        ),
        (
            dict(x=make_sequence(), outer_data=(X, Y), batch_size=2),
            "`batch_size` cannot be given where",
        ),
        (dict(x=STREAM, y=Y, outer_data=STREAM), "`y` cannot be given where"),
        (
            dict(x=STREAM, outer_data=STREAM, batch_size=3),
            "`batch_size` cannot be given where",
        ),
        (
            dict(x=make_sequence(), outer_data=STREAM, validation_split=0.1),
            "`validation_split` needs arrays",
        ),
        (dict(x=STREAM, outer_split=0.5), "`outer_split` needs arrays"),
        (
            dict(
                x=STREAM,
                outer_data=STREAM,
                validation_split=0.1,
                validation_data=(X, Y),
            ),
            "`validation_split` needs arrays",
        ),
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
        (
            dict(x=X, y=Y, outer_data=(X, Y), batch_size=2.5),
            "`batch_size` must be an integer",
        ),
    ],
)
def test_bad_data_are_refused_with_the_reason(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        read(**arguments)
    assert "Received:" in str(error.value)
