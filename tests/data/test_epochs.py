"""How much is trained in an epoch, and data that end or never do."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.data import streams
from keras_hposgld.data.epochs import in_epochs
from keras_hposgld.data.fit_data import FitData

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4)).astype("float32")
Y = X[:, :1] - X[:, 1:2]
OUTER = (X[30:], Y[30:])


def make_learner(**arguments):
    keras.utils.set_random_seed(3)
    regularizer = hs.regularizers.LearnableL2(0.02)
    learner = hs.BilevelModel(
        keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(1, kernel_regularizer=regularizer),
            ]
        ),
        seed=5,
    )
    learner.compile(
        optimizer=hs.SGLD(0.05, temperature=1e-3, seed=2),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, 2),
        **arguments,
    )
    return learner


def batches(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(5)


DATA = {
    "arrays": lambda: dict(x=X, y=Y, batch_size=5),
    "dataset": lambda: dict(x=batches(X, Y)),
    "generator": lambda: dict(
        x=((X[5 * n :][:5], Y[5 * n :][:5]) for n in range(7))
    ),
}


def trained(learner, kind="arrays", **arguments):
    learner.fit(
        **DATA[kind](),
        outer_data=OUTER,
        outer_batch_size=4,
        verbose=0,
        **arguments,
    )
    return learner


def assert_equal_variables(a, b):
    assert int(a.outer_iterations) == int(b.outer_iterations)
    for one, other in zip(a.variables, b.variables, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


@pytest.mark.parametrize(
    "steps_per_execution, run_eagerly", [(2 * 3, True), (100 * 3, False)]
)
def test_steps_per_execution_do_not_change_what_is_trained(
    steps_per_execution, run_eagerly
):
    # 8 batches make 3 chains of 3 an epoch: not a multiple of 2.
    expected = trained(make_learner(), epochs=2)
    assert int(expected.outer_iterations) == 6
    learner = make_learner(
        steps_per_execution=steps_per_execution, run_eagerly=run_eagerly
    )
    trained(learner, epochs=2)
    np.testing.assert_allclose(
        learner.get_weights()[0], expected.get_weights()[0], rtol=1e-5
    )
    assert int(learner.outer_iterations) == 6


def test_number_of_steps_of_the_user_holds_too():
    learners = [
        trained(
            make_learner(steps_per_execution=n),
            "dataset",
            epochs=3,
            steps_per_epoch=5 * 3,
        )
        for n in (1, 4 * 3)
    ]
    assert int(learners[0].outer_iterations) == 15
    assert_equal_variables(*learners)


def test_training_that_goes_on_draws_what_it_would_have_drawn():
    whole = trained(make_learner(steps_per_execution=2 * 3), epochs=3)
    parts = trained(make_learner(steps_per_execution=2 * 3), epochs=1)
    trained(parts, epochs=3, initial_epoch=1)
    assert_equal_variables(parts, whole)


def test_killed_run_goes_on_by_a_backup(tmp_path):
    class Kill(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    whole = trained(make_learner(steps_per_execution=2 * 3), epochs=4)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        trained(
            make_learner(steps_per_execution=2 * 3),
            epochs=4,
            callbacks=[backup, Kill()],
        )
    again = make_learner(steps_per_execution=2 * 3)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    trained(again, epochs=4, callbacks=[backup])
    assert_equal_variables(again, whole)


def test_epochs_follow_each_other_in_one_pass():
    # Keras makes an iterator more at the end of each epoch.
    numbers = in_epochs(tf.data.Dataset.range(20), 3, chains_per_execution=2)
    assert int(numbers.cardinality()) == 3
    iter(numbers)
    drawn = [[int(n) for n in numbers] for _ in range(3)]
    assert drawn == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_logs_of_an_epoch_count_its_own_steps():
    numbers = []

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            numbers.append(int(self.model.outer_iterations))
            assert self.params["steps"] == 3 * 3

    trained(
        make_learner(steps_per_execution=2 * 3), epochs=3, callbacks=[Count()]
    )
    assert numbers == [3, 6, 9]


@pytest.mark.parametrize("steps_per_epoch", [0, -1, 2.5])
def test_number_of_steps_is_checked(steps_per_epoch):
    with pytest.raises(ValueError, match="`steps_per_epoch` must be"):
        trained(make_learner(), steps_per_epoch=steps_per_epoch)


class Written(keras.callbacks.Callback):
    """Counts the epochs whose logs were written."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def on_epoch_end(self, epoch, logs=None):
        self.number += 1


def ending(num_batches, is_dataset=False):
    generator = ((X[:5], Y[:5]) for _ in range(num_batches))
    if not is_dataset:
        return generator
    signature = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))
    return tf.data.Dataset.from_generator(
        lambda: generator, output_signature=signature
    )


@pytest.mark.parametrize(
    "num_batches, num_chains, num_epochs, steps_per_execution",
    [(2, 0, 0, 1), (14, 4, 2, 1), (10, 3, 1, 2 * 3)],
)
def test_outer_data_that_end_are_an_error(
    num_batches, num_chains, num_epochs, steps_per_execution
):
    # Two chains an epoch: none, one and a half, and two epochs are possible.
    learner, written = (
        make_learner(steps_per_execution=steps_per_execution),
        Written(),
    )
    with pytest.raises(
        RuntimeError,
        match=f"`outer_data` must last .* ended after {num_chains} chains",
    ):
        learner.fit(
            X,
            Y,
            outer_data=ending(num_batches),
            steps_per_epoch=2 * 3,
            epochs=5,
            callbacks=[written],
            verbose=0,
        )
    assert written.number == num_epochs
    assert int(learner.outer_iterations) == num_chains


def test_inner_data_that_end_are_named():
    with pytest.raises(RuntimeError, match="`x` must last .* after 2 chains"):
        trained(make_learner(), "generator", steps_per_epoch=3 * 3, epochs=2)


def test_dataset_that_can_be_read_only_once_is_no_silence():
    # Repeated, its second pass is empty; its first batch is read to look at.
    with pytest.raises(RuntimeError, match="`outer_data` must last"):
        make_learner().fit(
            X,
            Y,
            outer_data=ending(9, is_dataset=True),
            steps_per_epoch=4 * 3,
            verbose=0,
        )


def test_outer_data_of_the_callback_that_end_are_named():
    model = make_learner().model
    model.compile("sgd", "mse")
    callback = hs.callbacks.LearnHyperparameters(
        ending(10), hs.estimators.HPOSGLD(1, 2), every=1, batch_size=2
    )
    with pytest.raises(
        RuntimeError, match="`outer_data` must last .* after 3 chains"
    ):
        model.fit(X, Y, batch_size=5, verbose=0, callbacks=[callback])


def test_dataset_without_a_known_end_is_not_counted_for_ever(monkeypatch):
    monkeypatch.setattr(streams, "COUNTING_SECONDS", 0.2)
    endless = tf.data.Dataset.from_generator(
        lambda: ((X[:5], Y[:5]) for _ in itertools.count()),
        output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1))),
    )
    with pytest.raises(ValueError, match="`steps_per_epoch` must be given"):
        make_learner().fit(endless, outer_data=OUTER, verbose=0)
    learner = make_learner()
    learner.fit(endless, outer_data=endless, steps_per_epoch=2 * 3, verbose=0)
    assert int(learner.outer_iterations) == 2


def test_finite_dataset_of_unknown_length_is_counted():
    finite = tf.data.Dataset.from_generator(
        lambda: ((X[:5], Y[:5]) for _ in range(7)),
        output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1))),
    )
    data = FitData.from_fit((finite, None, None), outer_data=OUTER)
    assert data.chains_per_epoch(num_steps=3) == 3
    filtered = batches(X, Y).filter(lambda x, y: x[0, 0] > -9.0)
    data = FitData.from_fit((filtered, None, None), outer_data=OUTER)
    assert data.chains_per_epoch(num_steps=3) == 3


def test_two_replicas_train_as_much_and_name_data_that_end(mirrored):
    with mirrored.scope():
        learner = make_learner()
    written = Written()
    with pytest.raises(
        RuntimeError, match="`outer_data` must last .* after 3 chains"
    ):
        learner.fit(
            X,
            Y,
            outer_data=((X[:6], Y[:6]) for _ in range(10)),
            batch_size=4,
            steps_per_epoch=2 * 3,
            epochs=5,
            callbacks=[written],
            verbose=0,
        )
    assert written.number == 1
    learner.fit(X, Y, outer_data=OUTER, batch_size=10, epochs=2, verbose=0)
    assert int(learner.outer_iterations.numpy()) == 3 + 2 * 2


def test_several_steps_on_the_one_device_of_a_strategy():
    expected = trained(make_learner(), epochs=2)
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        learner = make_learner(steps_per_execution=2 * 3)
    trained(learner, epochs=2)
    assert_equal_variables(learner, expected)
