"""Batches of different length: fed as plain Keras feeds them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import Batches

import keras_hposgld as hs
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.data.padding import open_shapes
from keras_hposgld.data.padding import Padded
from keras_hposgld.data.padding import unpadded
from keras_hposgld.data.streams import StreamData

# Six batches of four sentences, each batch as long as its longest sentence.
LENGTHS = (3, 7, 5, 7, 2, 4)


def sentences(seed=0, batch_size=4, lengths=LENGTHS):
    rng = np.random.default_rng(seed)
    batches = []
    for length in lengths:
        tokens = rng.integers(1, 20, size=(batch_size, length))
        own = rng.integers(1, length + 1, size=(batch_size, 1))
        own[0] = length
        tokens[np.arange(length) >= own] = 0
        targets = rng.normal(size=(batch_size, 1))
        batches.append((tokens.astype("int32"), targets))
    return batches


def as_dataset(batches):
    """A dataset that leaves open what differs, as `padded_batch` does."""
    x, y = batches[0]
    signature = (
        tf.TensorSpec([None] * x.ndim, x.dtype),
        tf.TensorSpec([None, *y.shape[1:]], y.dtype),
    )
    return tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=signature
    )


KINDS = {
    "dataset": as_dataset,
    "PyDataset": Batches,
    "generator": lambda batches: iter(list(batches) * 3),
}


def regularizer():
    return hs.regularizers.LearnableL2(0.05, max_value=5.0)


def make_model(is_masked=False, is_recurrent=False):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((None,), dtype="int32")
    hidden = keras.layers.Embedding(20, 4, mask_zero=is_masked)(tokens)
    if is_recurrent:
        hidden = keras.layers.GRU(3, kernel_regularizer=regularizer())(hidden)
    else:
        hidden = keras.layers.GlobalAveragePooling1D()(hidden)
    outputs = keras.layers.Dense(1, kernel_regularizer=regularizer())(hidden)
    return keras.Model(tokens, outputs)


def keras_weights(model, batches):
    """The weights after plain Keras's own steps, batch by batch."""
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    for x, y in batches:
        model.train_on_batch(x, y)
    return model.get_weights()


def make_learner(model, **arguments):
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=hs.SGLD(0.1),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(0, 3),
        hyper_optimizer=keras.optimizers.SGD(0.0),
        **arguments,
    )
    return learner


@pytest.mark.parametrize(
    "kind, mask",
    [
        ("dataset", {}),
        ("dataset", dict(is_masked=True, is_recurrent=True)),
        ("PyDataset", {}),
        ("generator", {}),
    ],
)
def test_weights_are_those_of_keras(float64, kind, mask):
    # Without a mask the mean over time would count every zero of a padding.
    batches, outer = sentences(), sentences(1)
    expected = keras_weights(make_model(**mask), batches)
    learner = make_learner(make_model(**mask))
    learner.fit(
        KINDS[kind](batches),
        outer_data=KINDS[kind](outer),
        steps_per_epoch=2 * 3,
        shuffle=False,
        verbose=0,
    )
    for a, b in zip(learner.model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_outer_loss_is_that_of_batches_at_their_own_length(float64):
    outer = sentences(1, lengths=LENGTHS[:3])
    model = make_model()
    model.compile(loss="mse")
    expected = []
    for x, y in outer:
        expected.append(np.mean((model(x, training=False) - y) ** 2))
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=hs.SGLD(1e-15),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(0, 3),
    )
    history = learner.fit(
        as_dataset(sentences()),
        outer_data=as_dataset(outer),
        steps_per_epoch=3,
        verbose=0,
    )
    np.testing.assert_allclose(
        history.history["outer_loss"], [np.mean(expected)], rtol=1e-9
    )


def test_targets_with_a_time_axis_follow_their_inputs(float64):
    # A tag for each token: inputs, targets and weights differ in length.
    def tagged(batches):
        rng = np.random.default_rng(3)
        return [
            (x, rng.normal(size=(*x.shape, 2)), rng.uniform(size=x.shape))
            for x, _ in batches
        ]

    def model():
        keras.utils.set_random_seed(0)
        tokens = keras.Input((None,), dtype="int32")
        hidden = keras.layers.Embedding(20, 4)(tokens)
        hidden = keras.layers.Conv1D(3, 3, padding="same", activation="tanh")(
            hidden
        )
        tags = keras.layers.Dense(2, kernel_regularizer=regularizer())(hidden)
        return keras.Model(tokens, tags)

    batches = tagged(sentences())
    plain = model()
    plain.compile(keras.optimizers.SGD(0.1), loss="mse")
    for x, y, sample_weight in batches:
        plain.train_on_batch(x, y, sample_weight)
    learner = make_learner(model())
    learner.fit(
        Batches(batches),
        outer_data=Batches(batches),
        steps_per_epoch=2 * 3,
        shuffle=False,
        verbose=0,
    )
    for a, b in zip(
        learner.model.get_weights(), plain.get_weights(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore:The batches of `outer_data` may differ")
def test_xla_fills_up_and_says_so(float64):
    batches = sentences(lengths=LENGTHS[:3])
    expected = keras_weights(make_model(is_masked=True), batches)
    learner = make_learner(make_model(is_masked=True), jit_compile=True)
    with pytest.warns(UserWarning, match="`x` may differ in length"):
        learner.fit(
            as_dataset(batches),
            outer_data=as_dataset(batches),
            steps_per_epoch=3,
            verbose=0,
        )
    for a, b in zip(learner.model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_batches_are_stacked_and_cut_back():
    batches = sentences()
    level = StreamData("x", as_dataset(batches))
    ((x, y),) = level.chains(6).take(1)
    assert isinstance(x, Padded) and x.values.shape == (6, 4, 7)
    assert tf.is_tensor(y) and y.shape == (6, 4, 1)
    for n, (tokens, _) in enumerate(batches):
        one = tf.nest.map_structure(lambda part, n=n: part[n], (x, y))
        np.testing.assert_array_equal(unpadded(one)[0], tokens)


def test_batch_of_two_lengths_is_filled_up_with_zeros():
    x = [np.full((3, 2), 1.0), np.full((2, 4), 2.0)]
    dataset = as_dataset([(part, np.zeros((len(part), 1))) for part in x])
    # Batches of 3: the second has two examples of 4 and the first of 2.
    ((first, _),) = StreamData("x", dataset).chains(2).take(1)
    second = unpadded(tf.nest.map_structure(lambda part: part[1], first))
    np.testing.assert_array_equal(second, [[2] * 4, [2] * 4, [1, 1, 0, 0]])


def test_what_may_differ_is_left_open_and_no_more():
    inputs = keras.Input((None, 3))
    short = (np.ones((4, 5, 3)), np.ones((4, 1)), np.ones((4, 5)))
    long = (np.ones((2, 6, 3)), np.ones((2, 1)), np.ones((2, 6)))
    expected = [(None, None, 3), (None, 1), (None, None)]
    assert open_shapes([short, long], inputs) == expected
    assert open_shapes([short], inputs) == expected
    assert open_shapes([short, long]) == expected  # it was seen
    fixed = [(None, 5, 3), (None, 1), (None, 5)]
    assert open_shapes([short]) == fixed
    assert open_shapes([short], keras.Input((5, 3))) == fixed
    spec = tuple(
        tf.TensorSpec(shape)
        for shape in [(None, None, None), (None, None), (None, 5)]
    )
    assert open_shapes([short], inputs, spec) == [
        (None, None, 3),
        (None, None),
        (None, 5),
    ]
    # Only inputs of one length: what a generator does not say is seen.
    assert open_shapes([short], keras.Input((5, 3)), spec) == fixed


def test_levels_may_differ_in_length():
    inputs = keras.Input((None,))
    arrays = [(np.ones((6, n)), np.ones((6, 1))) for n in (3, 5)]
    data = FitData.from_fit(
        (*arrays[0], None), outer_data=arrays[1], inputs=inputs
    )
    assert [level.spec[0].shape[1] for level in data.levels] == [None, None]
    fixed = tf.data.Dataset.from_tensor_slices(arrays[1]).batch(2)
    FitData.from_fit((*arrays[0], None), outer_data=fixed, inputs=inputs)
    with pytest.raises(ValueError, match="The inputs of `outer_data` must"):
        FitData.from_fit((*arrays[0], None), outer_data=arrays[1], inputs=None)


def test_another_length_than_the_model_takes_is_named():
    batches = [(np.ones((4, n)), np.ones((4, 1))) for n in (3, 3, 5)]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    learner = hs.BilevelModel(model, regularizer=regularizer())
    learner.compile(
        optimizer=hs.SGLD(0.1),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(0, 3),
    )
    with pytest.raises(ValueError, match="`x` must be like the first one"):
        learner.fit(
            iter(batches),
            outer_data=batches[0],
            steps_per_epoch=3,
            verbose=0,
        )


def test_ragged_tensors_are_refused_with_the_way_out():
    ragged = tf.ragged.constant([[1.0], [1.0, 2.0]])
    dataset = tf.data.Dataset.from_tensors((ragged, tf.zeros([2, 1])))
    with pytest.raises(ValueError, match="`x` must be dense.*to_tensor"):
        StreamData("x", dataset)


def test_replicas_share_batches_at_their_own_length(mirrored):
    # Halves of a batch have its length, whichever half is longer.
    batches, outer = sentences(), sentences(1)

    def learned(strategy):
        with strategy.scope():
            learner = make_learner(make_model())
        learner.fit(
            as_dataset(batches),
            outer_data=as_dataset(outer),
            steps_per_epoch=2 * 3,
            verbose=0,
        )
        return learner.model.get_weights()

    alone = tf.distribute.get_strategy()
    for a, b in zip(learned(mirrored), learned(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
