"""The buffer of the examples that `fit` trained on last."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.callbacks.recent_examples import RecentExamples
from keras_hposgld.data.padding import Padded
from keras_hposgld.data.padding import unpadded


def step(batches, n):
    return tf.nest.map_structure(lambda part: part[n], batches)


def numbered(first, size, length):
    """Examples whose entries are their numbers, and targets of one axis."""
    number = np.arange(first, first + size, dtype="float32")
    return {"x": (np.tile(number[:, None], [1, length]),), "y": number}


def writer(recent, spec=None):
    """Writes into a buffer, eagerly or in a graph of open lengths."""
    if spec is None:
        return recent.write
    return tf.function(recent.write, input_signature=[spec])


OPEN = {
    "x": (tf.TensorSpec((None, None)),),
    "y": tf.TensorSpec((None,)),
}


@pytest.mark.parametrize("spec", [None, OPEN])
def test_batches_keep_their_length(spec):
    recent = RecentExamples(6)
    write = writer(recent, spec)
    written = [numbered(0, 2, 3), numbered(2, 2, 5), numbered(4, 2, 2)]
    for batch in written:
        write(batch)
    assert recent.is_full
    stacked = recent.stacked(3)
    assert isinstance(stacked["x"][0], Padded)
    for n, batch in enumerate(written):
        own = unpadded(step(stacked, n))
        np.testing.assert_array_equal(own["x"][0], batch["x"][0])
        np.testing.assert_array_equal(own["y"], batch["y"])
    # Over the oldest ones; a batch of two lengths has zeros at its end.
    write(numbered(6, 1, 4))
    first = unpadded(step(recent.stacked(3), 0))
    np.testing.assert_array_equal(first["x"][0], [[6, 6, 6, 6], [1, 1, 1, 0]])


def test_examples_of_one_length_are_stacked_as_they_are():
    recent = RecentExamples(4)
    recent.write(numbered(0, 4, 3))
    stacked = recent.stacked(2)
    assert stacked["x"][0].shape == (2, 2, 3)
    np.testing.assert_array_equal(stacked["y"], [[0, 1], [2, 3]])
    assert not recent.lengths


def test_examples_of_another_kind_begin_anew():
    recent = RecentExamples(4)
    recent.write((np.ones((4, 3), "float32"), np.ones(4)))
    others = [
        (np.ones((1, 3), "float32"), np.ones(1), np.ones(1)),  # weights
        (np.ones((1, 3), "float32"), np.ones((1, 1))),  # another rank
        (np.ones((1, 3), "int32"), np.ones((1, 1))),  # another type
        ({"a": np.ones((1, 3), "int32")}, np.ones((1, 1))),
        ({"a": np.ones((1, 3), "int32")}, np.ones((1, 1)), None),
    ]
    for other in others:
        recent.write(other)
        assert int(recent.num_written) == 1
        assert not recent.is_full
    assert recent.stacked(4)[2] is None
    recent.write(others[-1])
    assert int(recent.num_written) == 2


def regularizer():
    return hs.regularizers.LearnableL2(0.05)


def make_callback(outer, **arguments):
    return hs.callbacks.LearnHyperparameters(
        outer,
        hs.estimators.HPOSGLD(0, 2),
        every=2,
        chain="apart",
        **arguments,
    )


def test_used_callback_takes_sample_weights_and_lets_them_go():
    x = np.random.default_rng(0).normal(size=(40, 3))
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(1, kernel_regularizer=regularizer()),
        ]
    )
    model.compile("sgd", "mse")
    callback = make_callback((x, x[:, :1]), batch_size=5)
    iterations = []
    for sample_weight in (None, np.ones(40), None):
        model.fit(
            x,
            x[:, :1],
            sample_weight=sample_weight,
            batch_size=5,
            callbacks=[callback],
            verbose=0,
        )
        iterations.append(int(callback.outer_level.iterations))
    assert iterations == [4, 8, 12]


def pooling_model(**arguments):
    model = keras.Sequential(
        [
            keras.Input((None, 2)),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1, kernel_regularizer=regularizer()),
        ]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse", **arguments)
    return model


def as_dataset(batches):
    return tf.data.Dataset.from_generator(
        lambda: iter(batches),
        output_signature=(
            tf.TensorSpec((None, None, 2)),
            tf.TensorSpec((None, 1)),
        ),
    )


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_buffer_that_xla_would_not_let_grow_is_refused():
    dataset = as_dataset(
        [(np.ones((4, n, 2)), np.ones((4, 1))) for n in (3, 5)]
    )
    model = pooling_model(jit_compile=True)
    with pytest.raises(ValueError, match="`jit_compile` must be False"):
        model.fit(
            dataset, callbacks=[make_callback(dataset, batch_size=4)], verbose=0
        )
    callback = make_callback(dataset, batch_size=4, inner_data=dataset)
    model = pooling_model(jit_compile=True)
    model.fit(dataset, callbacks=[callback], verbose=0)
    assert int(callback.outer_level.iterations) == 1


@pytest.mark.parametrize("run_eagerly", [False, True])
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_chain_sees_batches_at_their_own_length(run_eagerly):
    # Without a mask the mean over time would count every zero of a padding.
    rng = np.random.default_rng(0)
    batches = [
        (rng.normal(size=(4, n, 2)), rng.normal(size=(4, 1)))
        for n in (3, 7, 5, 2)
    ]
    dataset = as_dataset(batches)
    model = pooling_model(run_eagerly=run_eagerly)
    losses = np.array([model.evaluate(*b, verbose=0) for b in batches])
    callback = make_callback(
        dataset,
        sampler=hs.SGLD(1e-12),
        hyper_optimizer=keras.optimizers.SGD(0.0),
        batch_size=4,
    )
    inner_losses = []

    def observe(estimate):
        tf.py_function(
            lambda loss: inner_losses.append(float(loss)),
            [estimate.inner_loss],
            [],
        )

    callback.outer_level.observers.append(observe)
    history = model.fit(dataset, callbacks=[callback], verbose=0)
    # Two chains of two batches each, at weights that stay.
    np.testing.assert_allclose(
        inner_losses, losses.reshape(2, 2).mean(1), rtol=1e-5
    )
    np.testing.assert_allclose(
        history.history["outer_loss"],
        [losses.mean() - float(sum(model.losses))],
        rtol=1e-5,
    )
