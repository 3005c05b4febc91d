"""What `fit` says of steps that are too large, or chains that are too few."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.training.checks import check_schedule

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = X[:, :1] - 0.5
OTHER = (X[::-1].copy(), Y[::-1].copy())


def make_model(max_value=4.0):
    keras.utils.set_random_seed(1)
    learnable = hs.regularizers.LearnableL2(0.1, max_value=max_value)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer=learnable)]
    )


def make_learner(optimizer=0.05, **arguments):
    learner = hs.BilevelModel(make_model())
    defaults = dict(
        optimizer=hs.SGLD(optimizer),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, 1),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, **arguments):
    # Three chains of two steps an epoch.
    defaults = dict(outer_data=OTHER, batch_size=2, verbose=0)
    return learner.fit(X, Y, **(defaults | arguments))


def peak_at(step, peak=0.3):
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [step - 1, step], [0.01, peak, 0.01]
    )


def test_schedule_is_checked_over_all_steps_before_the_first():
    learner = make_learner(peak_at(17))
    fit(learner, epochs=2)  # steps 0 to 11
    with pytest.raises(ValueError, match="max_value.*inner step 17"):
        fit(learner, epochs=2)  # 12 to 23
    assert int(learner.outer_iterations) == 6
    # `initial_epoch` leaves one epoch, steps 12 to 17, and then none.
    with pytest.raises(ValueError, match="inner step 17"):
        fit(learner, epochs=2, initial_epoch=1)
    fit(learner, epochs=2, initial_epoch=1, steps_per_epoch=4)  # to 15


def test_schedule_of_many_steps_is_looked_at_from_end_to_end():
    learner = make_learner()
    sampler = hs.SGLD(
        keras.optimizers.schedules.PolynomialDecay(1e-3, 10**6, 0.3)
    )
    owners = learner.find_hyperparameters()
    check_schedule(owners, sampler, range(10**5))
    with pytest.raises(ValueError, match="inner step 999999"):
        check_schedule(owners, sampler, range(10**6))


def test_step_that_adapts_has_no_bound_of_its_rate():
    learner = make_learner()
    owners = learner.find_hyperparameters()
    adam = hs.samplers.from_optimizer(keras.optimizers.Adam(peak_at(3)))
    check_schedule(owners, adam, range(9))
    with pytest.raises(ValueError, match="inner step 3"):
        check_schedule(owners, hs.SGLD(peak_at(3)), range(9))


def test_rate_that_a_callback_sets_is_checked_at_each_epoch():
    learner = make_learner()
    rates = keras.callbacks.LearningRateScheduler(
        lambda epoch: 0.3 if epoch == 2 else 0.05
    )
    with pytest.raises(ValueError, match="learning_rate=0.3"):
        fit(learner, epochs=4, callbacks=[rates])
    assert int(learner.outer_iterations) == 6


def test_schedule_of_a_meta_model_is_checked_over_one_chain():
    tasks = tf.data.Dataset.from_tensors(
        ((X[None, :6], Y[None, :6]), (X[None, 6:], Y[None, 6:]))
    ).repeat(9)
    meta = hs.MetaModel(make_model())
    meta.compile(hs.SGLD(peak_at(3)), loss="mse", hypergradient="rmd_fo")
    with pytest.raises(ValueError, match="inner step 3"):
        meta.fit(tasks, verbose=0)
    meta.compile(hs.SGLD(peak_at(30)), loss="mse", hypergradient="rmd_fo")
    meta.fit(tasks, verbose=0)  # each chain has 20 steps


def test_too_few_updates_are_told_once_at_the_end():
    learner = make_learner()
    with pytest.warns(UserWarning, match="updated 9 times.*steps_per_epoch"):
        fit(learner, epochs=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(learner)  # three more: twelve


def test_chains_within_the_warm_up_are_no_updates():
    learner = make_learner(warmup_steps=1000)
    with pytest.warns(UserWarning, match="never.*36 chains.*warmup_steps"):
        fit(learner, epochs=12)


def test_nothing_is_left_behind_by_a_training_that_was_stopped():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    learner = make_learner(hypergradient=hs.estimators.HPOSGLD(1, 5))
    diagnostics = hs.callbacks.ChainDiagnostics()
    given = keras.callbacks.CallbackList(
        [diagnostics, Interrupt()], model=learner
    )
    before = list(given.callbacks)
    with pytest.raises(KeyboardInterrupt):
        fit(learner, callbacks=given)
    assert given.callbacks == before
    assert learner.outer_level.observers == []
    assert learner.train_function is None
    fit(learner)
    assert int(learner.outer_iterations) == 2
    # The observer that a second training adds is the only one.
    history = fit(learner, callbacks=[hs.callbacks.ChainDiagnostics()]).history
    assert "r_hat" in history


@pytest.mark.parametrize(
    "arguments",
    [{"batch_size": 5.5}, {"outer_batch_size": 2.5}, {"steps_per_epoch": 0}],
)
def test_numbers_that_are_none_are_refused(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        fit(make_learner(), **arguments)


def test_training_data_as_outer_data_are_told():
    with pytest.warns(UserWarning, match="`outer_data` holds the inputs"):
        fit(make_learner(), outer_data=(X, Y.copy()))
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2)
    with pytest.warns(UserWarning, match="`outer_data` holds the inputs"):
        make_learner().fit(data, outer_data=data, verbose=0)


@pytest.mark.parametrize(
    "given", ["l2", hs.regularizers.LearnableL2, keras.regularizers.L2(0.1)]
)
def test_what_cannot_be_learned_is_refused_by_name(given):
    with pytest.raises(TypeError, match="`regularizer` must be an instance"):
        hs.BilevelModel(make_model(), regularizer=given)
    with pytest.raises(TypeError, match="`example_weights` must be"):
        hs.BilevelModel(make_model(), example_weights=given)


def test_class_of_a_regularizer_stands_for_its_defaults():
    # Keras makes an instance of it.
    layer = keras.layers.Dense(
        1, kernel_regularizer=hs.regularizers.LearnableL2
    )
    learner = hs.BilevelModel(keras.Sequential([keras.Input((4,)), layer]))
    (value,) = learner.hyperparameter_values().values()
    np.testing.assert_allclose(value, np.full((4, 1), 1e-3), rtol=1e-3)


@pytest.mark.parametrize("kind", ["learner", "callback"])
def test_hyperparameters_end_as_averages_where_their_optimizer_keeps_some(kind):
    # As Keras does with weights: half of the average, half of the new value.
    optimizer = keras.optimizers.SGD(5.0, use_ema=True, ema_momentum=0.5)
    estimator = hs.estimators.HPOSGLD(1, 1)
    seen = []
    if kind == "learner":
        learner = make_learner(
            hypergradient=estimator, hyper_optimizer=optimizer
        )
        model, callbacks = learner.model, []
    else:
        model = make_model()
        model.compile(keras.optimizers.SGD(0.05), "mse")
        callbacks = [
            hs.callbacks.LearnHyperparameters(
                OTHER, estimator, hyper_optimizer=optimizer, batch_size=2
            )
        ]
    (owner,) = hs.find_hyperparameters(model)
    (strength,) = owner.hyperparameter_variables
    see = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(strength.numpy())
    )
    if kind == "learner":
        fit(learner, callbacks=[see], epochs=2)
    else:
        arguments = dict(batch_size=2, epochs=2, verbose=0)
        model.fit(X, Y, callbacks=[*callbacks, see], **arguments)
        seen = seen[1::2]  # the ends of chains
    average = seen[0]
    for value in seen[1:]:
        average = (average + value) / 2
    assert len(seen) == 6
    np.testing.assert_allclose(strength, average, rtol=1e-6)
    assert np.abs(average - seen[-1]).max() > 1e-4
