"""`fit` of a `BilevelModel` under the evidence, without outer data."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import Batches
from builders import state
from builders import values
from problems import LinearGaussian

import keras_hposgld as hs
from keras_hposgld.data.arrays import ArrayData

L = keras.layers
N, FEATURES = 60, 4
TAU = 1 / N
COUNTERS = {"hypergradient_norm", "skipped_updates"}


def make_data(n=N):
    data = LinearGaussian(np.random.default_rng(0), FEATURES, n)
    return data.x, data.y[:, None]


def penalty(**arguments):
    return hs.regularizers.LearnableL2(0.02, max_value=20.0, **arguments)


def make_learner(
    *layers, regularizer=None, sampler=None, unit=None, outer=None, **arguments
):
    """A linear model with a strength a weight and a learned noise."""
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            *layers,
            L.Dense(
                1,
                kernel_initializer=keras.initializers.RandomNormal(seed=0),
                use_bias=False,
                kernel_regularizer=regularizer or penalty(),
                kernel_constraint=unit,
            ),
        ]
    )
    learner = hs.BilevelModel(model, seed=0, **(outer or {}))
    defaults = dict(
        optimizer=sampler or hs.SGLD(0.2, integrator="exponential", seed=1),
        loss=hs.losses.LearnableGaussianLoss(0.9),
        hypergradient=hs.estimators.Evidence(1, 4, update="optimizer"),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, data=None, **arguments):
    x, y = data or make_data()
    defaults = dict(batch_size=20, epochs=2, steps_per_epoch=10, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The hyperparameters were updated")
        return learner.fit(x, y, **(defaults | arguments))


def everything(learner):
    return [*state(learner), *values(learner)]


def written_out(hypers, weights, batch):
    """The inner objective of `make_learner`, in TensorFlow."""
    (x, y), (raw, noise), (kernel,) = batch, hypers, weights
    deviation = 10 * tf.sigmoid(noise)
    fit = tf.reduce_mean((y - x @ kernel) ** 2) / (2 * deviation**2)
    fit += tf.math.log(deviation) + np.log(2 * np.pi) / 2
    return fit + tf.reduce_sum(20 * tf.sigmoid(raw) * kernel**2)


@pytest.mark.parametrize("integrator", ["euler", "exponential"])
def test_one_chain_is_the_functional_estimate(integrator, float64):
    def sampler(temperature):
        return hs.SGLD(0.02, temperature, integrator=integrator, seed=1)

    learner = make_learner(
        sampler=sampler(0.0), hyper_optimizer=keras.optimizers.SGD(1.0)
    )
    hypers = [tf.constant(v.numpy()) for v in learner.hyperparameters]
    params = [tf.constant(w.numpy()) for w in learner.trainable_variables]
    batches = ArrayData("x", make_data(), 20, seed=0).chains(5)
    estimate = hs.hypergradient(
        hs.BilevelProblem(
            written_out,
            log_normalizer=lambda h, tau: tf.reduce_sum(
                0.5 * tf.math.log(np.pi * tau / (20 * tf.sigmoid(h[0])))
            ),
            curvature=lambda h: [40 * tf.sigmoid(h[0])],
        ),
        hypers,
        params,
        estimator=hs.estimators.Evidence(1, 4),
        sampler=sampler(TAU),
        inner_batches=next(iter(batches)),
        seed=learner.sampler.chain_seed,
    )
    history = fit(learner, epochs=1, steps_per_epoch=5).history
    moved = [
        h - v for h, v in zip(hypers, learner.hyperparameters, strict=True)
    ]
    # Each subtraction of numbers of order one rounds to 1e-16.
    assert_equal(moved, estimate.hypergradient, rtol=1e-9, atol=1e-14)
    assert_equal(list(learner.trainable_variables), estimate.params, rtol=1e-9)
    assert set(history) == {"loss", *COUNTERS}
    norm = np.sqrt(sum(np.sum(g**2) for g in estimate.hypergradient))
    np.testing.assert_allclose(history["hypergradient_norm"], norm, rtol=1e-6)


def test_strengths_and_noise_come_to_the_exact_optimum(float64):
    data = LinearGaussian(np.random.default_rng(0), FEATURES, N)
    log_strengths, log_noise = data.optimum()
    rate = keras.optimizers.schedules.CosineDecay(0.1, 200)
    learner = make_learner(
        hypergradient=hs.estimators.Evidence(0, 50, update="optimizer"),
        hyper_optimizer=keras.optimizers.Adam(rate),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is to be said
        fit(
            learner,
            (data.x, data.y),
            batch_size=N,
            epochs=4,
            steps_per_epoch=50 * 50,
        )
    strengths, noise = values(learner)
    # Half of the distances are the errors of the chains, by the seed.
    assert np.abs(np.log(strengths[:, 0]) - log_strengths).max() < 0.1
    assert abs(noise / np.exp(log_noise) - 1) < 0.05


# The temperature.


@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
def test_temperature_is_one_over_the_number_of_examples(noise_scale):
    def sampler(temperature):
        return hs.SGLD(0.02, temperature, noise_scale, seed=1)

    def learned(temperature, n, **arguments):
        learner = make_learner(sampler=sampler(temperature))
        fit(learner, make_data(n), epochs=1, **arguments)
        assert learner.sampler.temperature == temperature
        return everything(learner)

    of_law, automatic = noise_scale**2, learned(0.0, N)
    assert_equal(automatic, learned(TAU / of_law, N))
    assert_equal(
        learned(0.0, N, validation_split=0.5),
        learned(2 * TAU / of_law, N, validation_split=0.5),
    )
    # One that the user gave is kept.
    assert not np.allclose(learned(0.3, N)[0], automatic[0])


def test_other_data_of_another_size_have_another_temperature():
    learner, same = make_learner(), make_learner()
    for n in (N, 40):
        fit(learner, make_data(n))
        same.optimizer.temperature = 1 / n
        same.train_function = None
        fit(same, make_data(n))
    assert_equal(everything(learner), everything(same))


def test_datasets_are_counted_to_the_last_example():
    x, y = make_data()
    last_is_shorter = tf.data.Dataset.from_tensor_slices((x, y)).batch(24)
    unknown = last_is_shorter.filter(lambda *_: True)
    batches = Batches([(x[i : i + 24], y[i : i + 24]) for i in (0, 24, 48)])
    learner = make_learner()
    fit(learner, batch_size=24, shuffle=False)
    for data in (last_is_shorter, unknown, batches):
        same = make_learner()
        fit(same, (data, None), batch_size=None, shuffle=False)
        assert_equal(everything(learner), everything(same))


def test_data_that_nobody_can_count_need_a_temperature():
    x, y = make_data()
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(20).repeat()
    with pytest.raises(ValueError, match=r"Pass `SGLD\(temperature=1 / n\)`"):
        fit(make_learner(), (endless, None), batch_size=None)
    learner = make_learner(sampler=hs.SGLD(0.02, TAU, seed=1))
    fit(learner, (endless, None), batch_size=None)
    same = make_learner(sampler=hs.SGLD(0.02, seed=1))
    fit(same, shuffle=False)
    assert_equal(everything(learner), everything(same))


def test_an_example_of_weight_two_counts_twice():
    x, y = make_data()
    weighted, doubled = make_learner(), make_learner()
    weights = np.tile([2.0, 0.0], N // 2)
    fit(weighted, batch_size=N, shuffle=False, sample_weight=weights)
    twice = np.repeat(np.arange(0, N, 2), 2)
    fit(doubled, (x[twice], y[twice]), batch_size=N, shuffle=False)
    assert_equal(everything(weighted), everything(doubled), rtol=1e-4)


# What Keras's users do.


def test_two_fits_are_one_and_a_saved_learner_goes_on(tmp_path):
    whole, halves = make_learner(), make_learner()
    fit(whole, epochs=2)
    fit(halves, epochs=1)
    halves.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert loaded.sampler.temperature == 0.0  # to be set for the data
    for learner in (halves, loaded):
        fit(learner, epochs=1)
        assert_equal(everything(learner), everything(whole))


def test_logs_of_training_and_validation_have_no_outer_loss():
    learner = make_learner(metrics=["mae"])
    history = fit(learner, validation_data=make_data()).history
    names = {"loss", "mae", "val_loss", "val_mae"}
    assert set(history) == names | COUNTERS
    assert np.isfinite(list(history.values())).all()
    x, y = make_data()
    assert set(learner.evaluate(x, y, verbose=0, return_dict=True)) == {
        "loss",
        "mae",
    }
    assert len(learner.evaluate(x, y, verbose=0)) == 2


def test_priors_that_count_outer_examples_are_not_added():
    plain, shrunk = (
        make_learner(),
        make_learner(regularizer=penalty(shrinkage=3.0)),
    )
    for learner in (plain, shrunk):
        fit(learner)
    assert_equal(values(plain), values(shrunk))


def test_nothing_is_said_of_outer_data():
    # 60 strengths, and 4 examples.
    regularizer = hs.regularizers.LearnableL2(0.99, max_value=1.0)
    learner = make_learner(
        L.Dense(15, kernel_regularizer=regularizer),
        sampler=hs.SGLD(0.01, integrator="exponential", seed=1),
    )
    x, y = make_data()
    with pytest.warns(UserWarning) as said:
        fit(learner, (x[:4], y[:4]), epochs=6)
    messages = [str(warning.message) for warning in said]
    assert "at their bound: the training data ask for more" in messages[0]
    assert not any("outer" in message for message in messages), messages


def test_refit_and_estimate_of_memory_are_served():
    learner = make_learner()
    history = fit(learner, epochs=1, refit=True)
    assert len(history.refit.history["loss"]) > 0
    assert learner.memory_estimate().total > 0


def test_classes_are_learned_from_with_a_frozen_dropout():
    x, _ = make_data()
    y = (x[:, :1] > 0).astype("float32")
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    learner = make_learner(L.Dropout(0.5), loss=loss, layer_state="frozen")
    before = values(learner)
    fit(learner, (x, y))
    assert np.all(values(learner)[0] != before[0])


def test_layers_whose_state_stays_are_served():
    # An LSTM keeps a random generator that it does not use.
    learner = make_learner(
        L.Normalization(mean=np.zeros(4), variance=np.ones(4)),
        L.Reshape((2, 2)),
        L.LSTM(3),
        L.LayerNormalization(),
    )
    fit(learner)


def test_replicas_learn_what_one_device_learns(mirrored, float64):
    learner = make_learner()
    fit(learner)
    with mirrored.scope():
        same = make_learner()
    fit(same)
    # Means over halves of batches round otherwise.
    assert_equal(values(learner), values(same), rtol=1e-9)


# What is refused.


class Doubled(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return 2 * (y_true - y_pred)[:, 0] ** 2


def test_own_losses_are_taken_for_log_likelihoods():
    fit(make_learner(loss=Doubled()))
    fit(make_learner(loss=lambda y, y_pred: tf.abs(y - y_pred)))


SUM = "sum"
REFUSED_LEARNERS = {
    "mse": (dict(loss="mse"), "LearnableGaussianLoss"),
    "mae": (dict(loss=keras.losses.MeanAbsoluteError()), "LearnableGaussianLo"),
    "huber": (dict(loss=keras.losses.huber), "LearnableGaussianLoss"),
    "sum": (dict(loss=Doubled(reduction=SUM)), "a mean over the batch"),
    "loss_weights": (dict(loss_weights=[0.5]), "`loss_weights` cannot"),
    "outer_loss": (dict(outer_loss="mse"), "`outer_loss` cannot be given"),
    "label_smoothing": (
        dict(loss=hs.losses.LearnableLabelSmoothing()),
        "nothing else: it would go to",
    ),
    "weight_decay": (
        dict(regularizer=hs.regularizers.LearnableWeightDecay(0.1)),
        "`LearnableL2`.* place of `LearnableWeightDecay`",
    ),
    "constraint": (
        dict(unit=keras.constraints.NonNeg()),
        "needs weights without a constraint",
    ),
    "example_weights": (
        dict(outer=dict(example_weights=hs.ExampleWeights(N))),
        "ExampleWeights",
    ),
}


@pytest.mark.parametrize("case", REFUSED_LEARNERS)
def test_refuses_when_compiled(case):
    arguments, message = REFUSED_LEARNERS[case]
    with pytest.raises(ValueError, match=message) as error:
        make_learner(**arguments)
    assert "Received: " in str(error.value)


REFUSED_LAYERS = {
    "dropout": L.Dropout(0.5, name="drop"),
    "noise": L.GaussianNoise(0.1, name="noise"),
    "normalization": L.BatchNormalization(name="norm"),
}


@pytest.mark.parametrize("case", REFUSED_LAYERS)
def test_refuses_layers_with_a_state_in_training(case):
    layer = REFUSED_LAYERS[case]
    learner = make_learner(type(layer).from_config(layer.get_config()))
    with pytest.raises(ValueError, match='`layer_state="frozen"`') as error:
        fit(learner)
    assert f"Received: '{layer.name}' of type {type(layer).__name__}. " in (
        str(error.value)
    )


REFUSED_ARGUMENTS = {
    "outer_data": dict(outer_data=(np.ones((4, 4)), np.ones((4, 1)))),
    "outer_split": dict(outer_split=0.2),
    "outer_folds": dict(outer_folds=3),
    "outer_batch_size": dict(outer_batch_size=4),
}


@pytest.mark.parametrize("case", REFUSED_ARGUMENTS)
def test_refuses_outer_data(case):
    message = f"`{case}` cannot be given with `Evidence`(?s:.*) belong to `x`"
    with pytest.raises(ValueError, match=message):
        fit(make_learner(), **REFUSED_ARGUMENTS[case])


@pytest.mark.parametrize("name", ["outer_split", "outer_folds"])
def test_refuses_outer_data_of_the_constructor(name):
    number = {"outer_split": 0.2, "outer_folds": 3}[name]
    with pytest.raises(ValueError, match=f"`{name}` cannot be given"):
        fit(make_learner(outer={name: number}))


@pytest.mark.parametrize("sampler", ["adam", hs.SGLD(0.02, noise_scale=0.0)])
def test_refuses_samplers_without_noise(sampler):
    with pytest.raises(ValueError, match="a sampler with noise"):
        fit(make_learner(sampler=sampler))


def test_refuses_means_over_several_numbers_of_an_example():
    def learner(**arguments):
        regularizer = hs.regularizers.LearnableL2(0.02)
        model = keras.Sequential(
            [keras.Input((4,)), L.Dense(3, kernel_regularizer=regularizer)]
        )
        learner = hs.BilevelModel(model)
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        learner.compile(
            hs.SGLD(0.05, **arguments), loss, hypergradient="evidence"
        )
        return learner

    x, y = np.ones((8, 4)), np.ones((8, 3))
    with pytest.raises(ValueError, match=r"temperature=1 / \(n \* 3\)"):
        fit(learner(), (x, y))
    fit(learner(temperature=1 / 24), (x, y), epochs=1)


def test_refuses_diagnostics_of_outer_losses():
    with pytest.raises(ValueError, match="`ChainDiagnostics` looks at the ou"):
        fit(make_learner(), callbacks=[hs.callbacks.ChainDiagnostics()])


def test_other_estimators_still_ask_for_outer_data():
    learner = make_learner(hypergradient=hs.estimators.HPOSGLD(1, 4))
    with pytest.raises(ValueError, match="`outer_data` must be given"):
        fit(learner)
    # The noise is learned on outer data as well, without another loss.
    history = fit(learner, outer_split=0.3).history
    assert np.isfinite(history["outer_loss"]).all()
