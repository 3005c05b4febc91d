"""`fit(x, y)` of a plain model: a sampler, priors and steps from the data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import state
from builders import values

import keras_hposgld as hs
from keras_hposgld.training import density

L = keras.layers
N = 60


def make_data(n=N):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, 4)).astype("float32")
    y = x[:, :1] - x[:, 1:2] * x[:, 2:3] + 0.3 * rng.normal(size=(n, 1))
    return x, y.astype("float32")


def make_model(*layers):
    keras.utils.set_random_seed(0)
    layers = layers or (L.Dense(6, "tanh"), L.Dense(1))
    return keras.Sequential([keras.Input((4,)), *layers])


def make_learner(*layers, **arguments):
    learner = hs.BilevelModel(make_model(*layers), seed=0)
    defaults = dict(
        optimizer=hs.SGLD("auto", seed=1),
        loss=hs.losses.LearnableGaussianLoss(),
        hypergradient="evidence",
        posterior_samples=4,
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, n=N, **arguments):
    defaults = dict(epochs=2, steps_per_epoch=100, verbose=0)
    return learner.fit(*make_data(n), **(defaults | arguments))


def everything(learner):
    variables = [v for part in learner.state().values() for v in part]
    return [v.numpy() for v in variables]


def test_a_plain_model_learns_at_the_defaults():
    learner = hs.BilevelModel(make_model(), seed=0)
    learner.compile(
        loss=hs.losses.LearnableGaussianLoss(), hypergradient="evidence"
    )
    history = fit(learner, epochs=3, steps_per_epoch=500).history
    assert type(learner.sampler) is type(hs.SGLD("auto"))
    x, y = make_data()
    error = np.sqrt(np.mean((learner.predict(x, verbose=0) - y) ** 2))
    assert error < 0.6 * y.std()
    assert set(history) == {
        "loss",
        "hypergradient_norm",
        "skipped_updates",
        "halvings",
    }
    kernel, bias, *_ = learner.hyperparameter_values().values()
    # One for each input, one for a tensor: a weight has a strength.
    assert kernel.shape == (4,) and bias.shape == ()
    assert len(learner.hyperparameters) == 5  # and the noise
    assert kernel[3] > kernel[0]  # which is of no use


def test_later_layers_have_one_strength():
    learner = make_learner()
    fit(learner, epochs=1)
    later = values(learner)[2]
    assert later.shape == (6,) and np.all(later == later[0])
    first = values(learner)[0]
    assert len(set(first)) == 4


def test_regularizers_of_the_user_are_left_alone():
    regularizer = hs.regularizers.LearnableL2(
        0.02, granularity="tensor", max_value=5.0
    )
    learner = make_learner(L.Dense(1, kernel_regularizer=regularizer))
    assert len(learner.hyperparameters) == 2
    fit(learner, epochs=1, steps_per_epoch=10)
    assert regularizer.max_value == 5.0
    (strength, _) = values(learner)
    assert strength.shape == () and 0 < strength < 5.0
    constant = make_learner(L.Dense(1, kernel_regularizer="l2"))
    kernel, bias = constant.trainable_variables
    assert isinstance(kernel.regularizer, keras.regularizers.L2)
    assert bias.regularizer is not None


@pytest.mark.parametrize("rule", ["gibbs", "gradient"])
def test_strengths_start_where_outputs_are_of_order_one(rule):
    learner = make_learner(hypergradient=hs.estimators.Evidence(0, 10, rule))
    beginning = {}
    learner.outer_level.observers.append(
        lambda estimate: beginning.update(
            {path: v for path, v in learner.hyperparameter_values().items()}
        )
    )
    learner._steps.build(
        learner.data_of_fit(
            (*make_data(), None),
            **dict(outer_data=None, outer_split=None, outer_folds=None),
            outer_batch_size=None,
        )
    )
    precision = 2 * N * np.concatenate([np.ravel(v) for v in values(learner)])
    usual = np.array([8.0] * 4 + [1.0] + [12.0] * 6 + [1.0])
    np.testing.assert_allclose(precision[:-1], 0.2 * usual, rtol=1e-4)


def test_a_scale_is_learned_beside_a_noise_and_not_beside_classes():
    # More inputs than examples: a plane parts the classes without a fault.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 60)).astype("float32")
    y = (x[:, :1] + 0.5 * rng.normal(size=(30, 1)) > 0).astype("float32")
    scales, logits = [], []
    for loss in (
        hs.losses.LearnableGaussianLoss(),
        keras.losses.BinaryCrossentropy(from_logits=True),
    ):
        model = keras.Sequential([keras.Input((60,)), L.Dense(1)])
        learner = hs.BilevelModel(model, seed=0)
        learner.compile(
            hs.SGLD("auto", seed=1, integrator="averaged"),
            loss,
            hypergradient="evidence",
        )
        learner.fit(x, y, steps_per_epoch=1000, verbose=0)
        penalty, _ = learner.find_hyperparameters()[0].penalties
        scales.append(penalty.scale)
        logits.append(np.abs(learner.predict(x, verbose=0)).max())
    assert float(scales[0].numpy()) != 1.0 and scales[1] is None
    assert logits[1] < 20.0


@pytest.mark.parametrize("rule", ["gradient", "gibbs"])
def test_strengths_follow_the_rule_for_their_model(rule):
    def learned(**arguments):
        is_linear = rule == "gibbs"
        layers = [L.Dense(1, kernel_initializer="zeros")] * is_linear
        learner = make_learner(*layers, **arguments)
        fit(learner, epochs=1, steps_per_epoch=100)
        return values(learner)

    chosen = learned(hypergradient=hs.estimators.Evidence(update=rule))
    assert_equal(learned(), chosen)


def test_a_bound_that_nobody_asked_for_is_raised_and_the_strengths_stay():
    regularizer = hs.regularizers.LearnableL2(0.3)
    learner = make_learner(L.Dense(1, kernel_regularizer=regularizer))
    learner.hyperparameters[0].assign_add([[0.5]] * 4)
    before = values(learner)[0]
    assert regularizer.max_value == 10.0
    learner._steps.build(
        learner.data_of_fit(
            (*make_data(), None),
            **dict(outer_data=None, outer_split=None, outer_folds=None),
            outer_batch_size=None,
        )
    )
    assert regularizer.max_value == 1e6
    np.testing.assert_allclose(values(learner)[0], before, rtol=1e-5)
    again = type(regularizer).from_config(regularizer.get_config())
    assert again.max_value == 1e6


# Momentum and batches.


@pytest.mark.parametrize(
    "batch_size, given, expected",
    [(None, None, 0.95), (20, None, 0.0), (20, 0.5, 0.5), (N, None, 0.95)],
)
def test_momentum_is_for_whole_batches(
    batch_size, given, expected, monkeypatch
):
    sampler = hs.SGLD("auto", seed=1, momentum=given)
    learner = make_learner(optimizer=sampler, run_eagerly=True)
    seen = []
    step = type(sampler)._move_one

    def moved(self, *arguments):
        seen.append(self.momentum)
        return step(self, *arguments)

    monkeypatch.setattr(type(sampler), "_move_one", moved)
    fit(learner, batch_size=batch_size, epochs=1, steps_per_epoch=10)
    assert set(seen) == {expected}
    # In three batches the largest step is 2/3 of the stable one, or 1/3 with
    # a momentum of 0.5.
    share = {None: 1.0, N: 1.0, 20: 2 / 3 * (1 - expected)}[batch_size]
    assert learner.step_sizes.share == pytest.approx(share)
    # What is saved is what the user has made.
    assert learner.sampler.given_momentum == given


def test_arrays_come_in_one_batch():
    whole, same = make_learner(run_eagerly=True), make_learner(run_eagerly=True)
    fit(whole, epochs=1, steps_per_epoch=10)
    fit(same, epochs=1, steps_per_epoch=10, batch_size=N)
    assert_equal(everything(whole), everything(same))


# Steps that are too large.


@pytest.mark.parametrize(
    "x, size",
    [
        (np.zeros([9000, 8]), 10_000),
        (np.zeros([9000, 40]), 2048),
        ({"a": np.zeros([9000, 20]), "b": np.zeros([9000, 20])}, 2048),
        ([tf.zeros([3000, 8])], 10_000),
        (tf.ragged.constant([[1.0], [1.0, 2.0]]), 2048),
        (tf.data.Dataset.range(5), 2048),
    ],
)
def test_a_batch_of_a_table_may_be_larger(x, size):
    assert density.default_batch_size(x) == size


def test_arrays_of_a_table_come_in_one_batch():
    learner = make_learner()
    data = learner.data_of_fit(
        (*make_data(3000), None),
        **dict(outer_data=None, outer_split=None, outer_folds=None),
        outer_batch_size=None,
    )
    assert data.batch_sizes == {"x": 3000}


def test_steps_that_are_too_large_are_halved_and_counted():
    learner = make_learner()
    learner.optimizer.learning_rate = 64.0
    history = fit(learner, epochs=3, steps_per_epoch=600).history
    halvings = int(learner.step_sizes.halvings.numpy())
    rate = float(learner.optimizer.learning_rate)
    assert halvings >= 3 and rate == 64.0 / 2**halvings
    assert history["halvings"][-1] == halvings
    assert np.all(np.isfinite(learner.trainable_variables[0]))
    assert 0.7 < float(learner.step_sizes.heat.last.numpy()) < 1.3
    x, y = make_data()
    error = np.sqrt(np.mean((learner.predict(x, verbose=0) - y) ** 2))
    assert error < 0.8 * y.std()


def test_a_velocity_that_ran_away_is_forgotten():
    learner = make_learner()
    fit(learner, epochs=1, steps_per_epoch=10)
    for velocity in learner.sampler.state_variables["velocity"]:
        velocity.assign(1e6 * tf.ones_like(velocity))
    history = fit(learner, epochs=1, steps_per_epoch=300).history
    assert history["skipped_updates"] == history["halvings"] == [1]
    assert 0.5 < learner.step_sizes.heat.total.numpy() / 29 < 2.0


@pytest.mark.filterwarnings("ignore:The learned noise")  # it has just begun
def test_steps_are_found_anew_the_more_often_the_earlier():
    learner = make_learner()
    found = []
    note = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: found.append(
            int(learner.step_sizes.renewals.numpy())
        )
    )
    fit(learner, epochs=40, steps_per_epoch=10, callbacks=[note])
    chains = 1 + np.flatnonzero(np.diff([0, *found]))
    assert list(chains) == [1, 2, 3, 5, 9, 17, 27, 37]


def test_good_steps_are_left_alone():
    learner = make_learner()
    fit(learner, epochs=1, steps_per_epoch=3000)
    assert int(learner.step_sizes.halvings.numpy()) == 0
    assert abs(learner.step_sizes.heat.recent_windows().mean() - 1) < 0.25


# What Keras's users do.


def test_two_fits_are_one_and_a_saved_learner_goes_on(tmp_path):
    layers = [L.Dense(1)]  # linear, with a scale that is drawn
    whole, halves = make_learner(*layers), make_learner(L.Dense(1))
    fit(whole, epochs=2)
    fit(halves, epochs=1)
    halves.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    scale = [p.scale for p in loaded.find_hyperparameters()[0].penalties]
    assert float(scale[0].numpy()) != 1.0 and scale[1] is None
    for learner in (halves, loaded):
        fit(learner, epochs=1)
        assert_equal(everything(learner), everything(whole))
    x, _ = make_data()
    assert_equal([loaded.predict(x, verbose=0)], [whole.predict(x, verbose=0)])


def test_checkpoints_bring_all_of_it_back(tmp_path):
    whole, halves = make_learner(), make_learner()
    fit(whole, epochs=2)
    fit(halves, epochs=1)
    path = tf.train.Checkpoint(learner=halves).save(str(tmp_path / "state"))
    other = make_learner()
    fit(other, epochs=1, steps_per_epoch=10)  # has made all variables
    tf.train.Checkpoint(learner=other).restore(path)
    fit(other, epochs=1)
    assert_equal(everything(other), everything(whole))


@pytest.mark.parametrize(
    "how", [dict(jit_compile=True), dict(run_eagerly=True)]
)
def test_every_way_to_run_gives_the_same(how, float64):
    # Draws would not be the same: XLA makes its own.
    rule = hs.estimators.Evidence(0, 10, update="gradient")
    learner = make_learner(hypergradient=rule)
    same = make_learner(hypergradient=rule, **how)
    for one in (learner, same):
        fit(one, epochs=1, steps_per_epoch=20)
    assert_equal(values(learner), values(same), rtol=1e-4)


def test_replicas_learn_what_one_device_learns(mirrored, float64):
    learner = make_learner()
    fit(learner, epochs=1, steps_per_epoch=20)
    with mirrored.scope():
        same = make_learner()
    fit(same, epochs=1, steps_per_epoch=20)
    assert_equal(values(learner), values(same), rtol=1e-7)
    assert_equal(
        [w.numpy() for w in learner.trainable_variables],
        [w.numpy() for w in same.trainable_variables],
        rtol=1e-7,
    )


def test_plain_training_and_state_are_untouched():
    # A regularizer that no evidence has seen is as it was.
    regularizer = hs.regularizers.LearnableL2()
    assert (regularizer.initial_value, regularizer.max_value) == (1e-3, 10.0)
    config = regularizer.get_config()
    assert (config["initial_value"], config["max_value"]) == (1e-3, 10.0)
    learner = make_learner()
    assert state(learner)


# What is refused.


def test_refuses_clipping():
    with pytest.raises(ValueError, match="`clipnorm` cannot be given"):
        make_learner(optimizer=hs.SGLD("auto", clipnorm=1.0))


def test_a_refit_needs_an_optimizer_of_its_own(monkeypatch):
    learner = make_learner()
    steps = type(learner._steps)
    with monkeypatch.context() as patch:
        patch.delattr(steps, "fit")  # refused before anything is trained
        with pytest.raises(ValueError, match="A refit needs an optimizer"):
            fit(learner, refit=True)
    fit(learner, epochs=1)
    with pytest.raises(ValueError, match="A refit needs an optimizer"):
        learner.refit(*make_data())
    learned = values(learner)
    adam = keras.optimizers.Adam(0.01)
    learner.refit(*make_data(), optimizer=adam, epochs=100, verbose=0)
    assert_equal(values(learner), learned)
    x, y = make_data()
    error = np.sqrt(np.mean((learner.predict(x, verbose=0) - y) ** 2))
    assert error < 0.9 * y.std()
    with pytest.raises(RuntimeError, match="compile"):
        hs.BilevelModel(make_model()).fit(x, y, outer_split=0.2, refit=True)


def test_an_optimizer_is_needed_with_outer_data():
    learner = hs.BilevelModel(make_model())
    with pytest.raises(TypeError, match="`optimizer` must be given"):
        learner.compile(loss="mse")
