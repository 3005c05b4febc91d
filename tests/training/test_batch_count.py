"""Epochs, callbacks and progress count batches, as in Keras."""

import os
import warnings

import keras
import numpy as np
import pytest

import keras_hposgld as hs
from keras_hposgld.training.batch_count import chains_of
from tests.builders import make_data

NUM_STEPS = 4


not_in_keras_3_8 = pytest.mark.skipif(
    keras.__version__.startswith("3.8."),
    reason="it names the first batch of several that are one call",
)


def make_model():
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])


def make_learner(**arguments):
    learner = hs.BilevelModel(
        make_model(), regularizer=hs.regularizers.LearnableL2(1e-12), seed=0
    )
    defaults = dict(
        optimizer=keras.optimizers.SGD(0.05),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, NUM_STEPS - 1),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, callbacks=(), **arguments):
    x, y = make_data()
    defaults = dict(epochs=2, steps_per_epoch=3 * NUM_STEPS, verbose=0)
    return learner.fit(
        x[:64],
        y[:64],
        outer_data=(x[64:], y[64:]),
        batch_size=8,
        callbacks=list(callbacks),
        **(defaults | arguments),
    )


class Recorder(keras.callbacks.Callback):
    """What a callback is told."""

    def __init__(self):
        super().__init__()
        self.told = []

    def on_train_batch_begin(self, batch, logs=None):
        self.told.append(("begin", batch, self.params["steps"]))

    def on_train_batch_end(self, batch, logs=None):
        steps = int(self.model.optimizer.iterations.numpy())
        self.told.append(("end", batch, steps))


@not_in_keras_3_8
@pytest.mark.parametrize("chains_per_execution", [1, 2])
def test_callbacks_are_told_what_keras_tells_them(chains_per_execution):
    steps_per_execution = chains_per_execution * NUM_STEPS
    plain, expected = make_model(), Recorder()
    plain.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    x, y = make_data(64)
    plain.fit(
        *(x, y),
        batch_size=4,  # 16 batches a pass, and 12 an epoch
        steps_per_epoch=2 * chains_per_execution * NUM_STEPS,
        epochs=1,
        callbacks=[expected],
        verbose=0,
    )
    recorder = Recorder()
    fit(
        make_learner(steps_per_execution=steps_per_execution),
        [recorder],
        epochs=1,
        steps_per_epoch=2 * chains_per_execution * NUM_STEPS,
    )
    assert recorder.told == expected.told
    assert len(recorder.told) == 4


def test_steps_per_execution_is_rounded_up_to_whole_chains():
    for asked, chains in ((1, 1), (NUM_STEPS, 1), (NUM_STEPS + 1, 2)):
        learner = make_learner(steps_per_execution=asked)
        assert learner.steps_per_execution == chains
        assert learner.get_compile_config()["steps_per_execution"] == asked


class RateOfBatch(keras.callbacks.Callback):
    """A learning rate that follows the number of the batch."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        done = self.epoch * self.params["steps"] + batch
        self.model.optimizer.learning_rate = 0.1 / (1 + done)


@pytest.mark.parametrize(
    "optimizer, callbacks",
    [
        (0.05, [RateOfBatch]),
        (keras.optimizers.schedules.CosineDecay(0.09, 16), []),
        (
            0.05,
            [
                lambda: keras.callbacks.LearningRateScheduler(
                    lambda epoch, rate: rate / (1 + epoch)
                )
            ],
        ),
    ],
)
def test_ported_training_is_that_of_keras(optimizer, callbacks):
    # 64 examples make 8 batches: two chains, and an epoch is one pass.
    plain, (x, y) = make_model(), make_data()
    plain.compile(
        keras.optimizers.SGD(optimizer), "mse", steps_per_execution=NUM_STEPS
    )
    plain.fit(
        *(x[:64], y[:64]),
        batch_size=8,
        epochs=3,
        shuffle=False,
        callbacks=[make() for make in callbacks],
        verbose=0,
    )
    learner = make_learner(
        optimizer=keras.optimizers.SGD(optimizer),
        hyper_optimizer=keras.optimizers.SGD(0.0),
    )
    fit(
        *(learner, [make() for make in callbacks]),
        epochs=3,
        steps_per_epoch=None,
        shuffle=False,
    )
    assert int(learner.optimizer.iterations) == 3 * 8
    assert int(plain.optimizer.iterations) == 3 * 8
    for a, b in zip(
        learner.trainable_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


@not_in_keras_3_8
def test_checkpoints_are_saved_every_so_many_batches(tmp_path):
    save = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}-{batch}.weights.h5",
        save_freq=2 * NUM_STEPS,
        save_weights_only=True,
    )
    fit(make_learner(), [save])
    assert set(os.listdir(tmp_path)) == {
        f"1-{2 * NUM_STEPS}.weights.h5",
        f"2-{NUM_STEPS}.weights.h5",
        f"2-{3 * NUM_STEPS}.weights.h5",
    }


def test_progress_bar_counts_batches(capsys):
    fit(make_learner(), verbose=1)
    assert f"{3 * NUM_STEPS}/{3 * NUM_STEPS}" in capsys.readouterr().out


def test_list_of_keras_counts_batches_too():
    learner, recorder = make_learner(), Recorder()
    given = keras.callbacks.CallbackList(
        [recorder], add_history=True, model=learner, steps=99
    )
    x, y = make_data()
    history = learner.fit(
        *(x[:64], y[:64]),
        outer_data=(x[64:], y[64:]),
        batch_size=8,
        callbacks=given,
        verbose=0,
    )
    assert recorder.told == [
        *[("begin", 0, 99), ("end", 3, 4), ("begin", 4, 99), ("end", 7, 8)]
    ]
    assert history is given._history
    assert len(given.callbacks) == 2


def test_epochs_that_are_rounded_up_are_told():
    learner = make_learner()
    with pytest.warns(UserWarning, match="takes 8 batches.*=5, and.* 4 batch"):
        fit(learner, steps_per_epoch=5)
    assert int(learner.optimizer.iterations) == 2 * 8
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "`steps_per_epoch`")
        fit(learner, steps_per_epoch=8)
    assert [chains_of(n, 4) for n in (1, 4, 5)] == [1, 1, 2]
