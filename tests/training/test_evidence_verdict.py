"""What `fit` says where learning from the training data alone has failed."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import values

import keras_hposgld as hs
from keras_hposgld.data.arrays import ArrayData
from keras_hposgld.training import evidence_verdict
from keras_hposgld.training import kept_samples
from keras_hposgld.training.evidence_verdict import EvidenceVerdict
from keras_hposgld.training.posterior_average import Numbers
from keras_hposgld.training.posterior_average import SigmoidLogits

L = keras.layers
STRONG = dict(initial_value=1e4, max_value=1e6)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


def regression(n=100, features=4, noise=0.5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, features)).astype("float32")
    y = x[:, :1] - x[:, 1:2] + noise * rng.normal(size=(n, 1))
    return x, (y / y.std()).astype("float32")


def classes(n=100):
    x, y = regression(n)
    return x, (y > 0).astype("float32")


def make_learner(
    optimizer=None, loss=None, hidden=0, features=4, update="gibbs", **strength
):
    keras.utils.set_random_seed(3)

    def regularizer():
        return hs.regularizers.LearnableL2(**strength) if strength else None

    layers = [keras.Input((features,))]
    if hidden:
        dense = L.Dense(hidden, "tanh", kernel_regularizer=regularizer())
        layers.append(dense)
    layers.append(L.Dense(1, kernel_regularizer=regularizer()))
    model = keras.Sequential(layers)
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(
        optimizer=optimizer or hs.SGLD("auto", seed=1),
        loss=loss or hs.losses.LearnableGaussianLoss(),
        hypergradient=hs.estimators.Evidence(update=update),
    )
    return learner


def said_by(learner, data, chains=40, epochs=1, **arguments):
    """All warnings of a `fit`, each of which must come once."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learner.fit(
            *data,
            epochs=epochs,
            steps_per_epoch=10 * chains // epochs,
            verbose=0,
            **arguments,
        )
    messages = [str(w.message) for w in said if w.category is UserWarning]
    assert len(set(messages)) == len(messages)
    return messages


def one(messages, part):
    """The one message that has a part."""
    (message,) = (m for m in messages if part in m)
    return message


# Good runs.

GOOD = {
    "regression": (regression, None),
    "classes": (classes, BINARY),
}


@pytest.mark.parametrize(
    "case, hidden",
    [
        ("regression", 0),
        ("classes", 10),
        pytest.param("regression", 10, marks=pytest.mark.slow),
        pytest.param("classes", 0, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_said_of_a_good_run(case, hidden):
    data, loss = GOOD[case]
    learner = make_learner(loss=loss, hidden=hidden)
    assert said_by(learner, data(), chains=200, epochs=8) == []
    assert said_by(learner, data(), chains=20, epochs=2) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_said_of_breast_cancer(seed):
    datasets = pytest.importorskip("sklearn.datasets", reason="its data")
    x, y = datasets.load_breast_cancer(return_X_y=True)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    learner = make_learner(hs.SGLD("auto", seed=seed), BINARY, 10, 30)
    data = x.astype("float32"), y[:, None]
    assert said_by(learner, data, chains=300, epochs=4) == []


# a. Too warm.


def test_steps_that_heat_the_chain():
    sampler = hs.SGLD(0.2, integrator="exponential", seed=1)
    learner = make_learner(sampler, hidden=20)
    data = regression(300)
    message = one(
        said_by(learner, data, chains=300, batch_size=20), "heats itself"
    )
    ratio = learner.step_sizes.heat.recent_windows()[1:].mean()
    assert "over its last 250 chains the mean of weight times" in message
    assert f"gradient was {ratio:.2f} of the temperature" in message
    assert "The learning rate is 0.2. Lower it, take a larger `batch" in message


def with_windows(learner, ratios):
    """A learner of a good run, but with these ratios of the last windows."""
    said_by(learner, regression(), chains=12)
    verdict = EvidenceVerdict(learner, ArrayData("x", regression(), 100))
    heat = learner.step_sizes.heat
    heat.windows.assign(len(ratios))
    heat.recent.assign(np.resize(ratios, heat.recent.shape))
    return verdict._too_warm()


def test_halvings_that_were_not_enough():
    learner = make_learner()
    learner.step_sizes.halvings.assign(7)
    message = with_windows(learner, [1.8, 1.7, 1.9, 1.8, 1.75, 1.8, 1.8, 1.9])
    assert "halved 7 times (`halvings` in the logs), which was" in message
    assert "over its last 400 chains" in message and "was 1.81 of" in message


@pytest.mark.parametrize(
    "ratios",
    [
        [1.9, 1.8, 1.7, 1.8],  # too few, without the first
        [20.9, -2.1, 2.5, -3.4, 3.2, -0.3],  # what chance does, at rate 0.002
        [1.2, 1.3, 1.2, 1.3, 1.25, 1.2, 1.3, 1.2],  # within the limit
    ],
)
def test_warmth_that_is_chance_or_little(ratios):
    assert with_windows(make_learner(), ratios) is None


def test_windows_are_kept_in_a_ring():
    heat = make_learner().step_sizes.heat

    class Estimate:
        params = [tf.zeros([2])]
        equipartition = tf.constant([0.0])
        inner_range = (0.0, 0.0)

    assert len(heat.recent_windows()) == 0
    for number in range(10):
        Estimate.equipartition = tf.constant([float(number)])
        for _ in range(50):
            heat.see(Estimate, tf.constant(0.0))
        assert len(heat.recent_windows()) == min(number + 1, 8)
    np.testing.assert_array_equal(
        np.sort(heat.recent_windows()), np.arange(2, 10)
    )


# b. Stuck at a strong start.


def test_strengths_stuck_at_a_strong_start():
    learner = make_learner(update="optimizer", **STRONG)
    (message,) = said_by(learner, regression(), chains=80)
    _, noise = values(learner)[0], values(learner)[-1]
    assert "Next to nothing of the targets is explained" in message
    assert f"noise is {noise:.3g}" in message and "targets 1." in message
    assert "`LearnableL2(initial_value=...)` with a smaller" in message
    weak = make_learner(update="optimizer", initial_value=1e-2, max_value=1e6)
    assert said_by(weak, regression()) == []


@pytest.mark.parametrize("loss", ["classes", "sparse"])
def test_classes_that_nothing_explains(loss):
    x, y = classes()
    kind = BINARY
    learner = make_learner(loss=kind, update="optimizer", **STRONG)
    if loss == "sparse":
        model = keras.Sequential(
            [
                keras.Input((4,)),
                L.Dense(
                    2,
                    "softmax",
                    kernel_regularizer=hs.regularizers.LearnableL2(**STRONG),
                ),
            ]
        )
        learner = hs.BilevelModel(model, seed=0)
        learner.compile(
            loss="sparse_categorical_crossentropy",
            hypergradient=hs.estimators.Evidence(update="optimizer"),
        )
        y = y[:, 0].astype("int32")
    message = one(said_by(learner, (x, y)), "Next to nothing of the classes")
    share = y.mean()
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert f"frequencies of the classes {entropy:.4g}." in message


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("from_logits", [False, True])
@pytest.mark.parametrize("kind", ["binary", "categorical", "sparse"])
def test_loss_of_the_frequencies_is_their_entropy(kind, from_logits, weighted):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 3, size=50)
    one_hot = np.eye(3, dtype="float32")[classes]
    weight = rng.uniform(0.5, 2.0, size=50) if weighted else np.ones(50)
    share = np.average(one_hot, axis=0, weights=weight)
    entropy = -np.sum(share * np.log(share))
    if kind == "binary":
        rest = 1 - share
        entropy = np.mean(-share * np.log(share) - rest * np.log(rest))
    loss = {
        "binary": keras.losses.BinaryCrossentropy,
        "categorical": keras.losses.CategoricalCrossentropy,
        "sparse": keras.losses.SparseCategoricalCrossentropy,
    }[kind](from_logits=from_logits)
    y_pred = tf.constant(rng.uniform(0.1, 0.9, size=(50, 3)), tf.float32)
    y = classes if kind == "sparse" else one_hot
    name = f"{kind}crossentropy".replace("sparse", "sparsecategorical")
    found = kept_samples.explained(
        loss, name, tf.constant(y), y_pred, weight if weighted else None
    )
    # Keras clips probabilities, and this is float32.
    assert found.constant_loss == pytest.approx(entropy, rel=1e-4)
    expected = loss(y, y_pred, sample_weight=weight / weight.mean())
    assert found.loss == pytest.approx(float(expected), rel=1e-4)


def test_one_class_is_no_failure():
    x, y = classes()
    # Which has learned nothing either, but has nothing to be compared with.
    sampler = hs.SGLD(1e-6, integrator="exponential", seed=1)
    learner = make_learner(sampler, loss=BINARY, **STRONG)
    said = said_by(learner, (x, np.ones_like(y)))
    assert not any("Next to nothing" in message for message in said)


# c. The noise.


def test_noise_that_collapses():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 30)).astype("float32")
    # Steps: where the weights of such a model are drawn, so is the noise.
    steps = hs.SGLD("auto", seed=1, integrator="averaged")
    learner = make_learner(steps, features=30)
    said = said_by(learner, (x, x[:, :1]), chains=240, epochs=8)
    message = one(said, "noise collapses: in the last 2 of 8 epochs it fell")
    assert "With 31 weights and 20 examples" in message
    said = said_by(learner, (x, x[:, :1]), chains=120)
    message = one(said, "noise collapses: it is")
    noise, spread = values(learner)[-1], x[:, 0].std()
    assert f"it is {noise:.3g}, and the standard deviation" in message
    assert f"targets {spread:.3g}." in message


def test_noise_that_has_not_come_to_its_place():
    said = said_by(make_learner(), regression(noise=0.1), chains=40, epochs=8)
    message = one(said, "noise was still falling: in the last 2 of 8 epochs")
    assert "Train for more epochs" in message


def test_targets_without_noise_are_no_failure_of_a_small_model():
    learner = make_learner(loss=hs.losses.LearnableGaussianLoss(9e-4))
    assert said_by(learner, regression(noise=1e-3), chains=80, epochs=8) == []


def test_noise_is_asked_for_by_the_contract():
    loss = hs.losses.LearnableGaussianLoss(0.5)
    assert float(loss.noise_deviation()) == pytest.approx(0.5)
    assert hs.regularizers.LearnableL2().noise_deviation() is None


# d. Mixing.


def test_chain_that_hardly_moves():
    sampler = hs.SGLD(1e-5, integrator="exponential", seed=1)
    learner = make_learner(sampler, initial_value=1e-2)
    message = one(said_by(learner, regression(), chains=80), "too short to")
    assert "its 32 kept samples" in message
    assert 'with a larger learning rate or `SGLD("auto")`' in message


def test_medians_are_those_of_an_autoregression():
    rng = np.random.default_rng(0)
    decay, number = 0.8, 4000
    rows = np.zeros((number, 200))
    for n in range(1, number):
        rows[n] = decay * rows[n - 1] + rng.normal(size=200)
    tensors = list(tf.constant(rows))
    mixing = kept_samples.mixing(tensors, Numbers())
    expected = number * (1 - decay) / (1 + decay)
    assert mixing.size == pytest.approx(expected, rel=0.1)
    assert mixing.r_hat == pytest.approx(1.0, abs=0.01)
    # Of probabilities, where those are averaged: these are all one.
    logits = [tf.where(row > 0, 60.0, 50.0) for row in tensors]
    assert kept_samples.mixing(logits, SigmoidLogits()).size == number
    assert kept_samples.mixing([tensors[-1]] * 9, Numbers()) == (1.0, np.inf)
    drifting = [row + n / 200 for n, row in enumerate(tensors)]
    assert kept_samples.mixing(drifting, Numbers()).r_hat > 1.7


def test_predictions_are_those_of_the_samples(monkeypatch):
    monkeypatch.setattr(kept_samples, "PART", 30)
    learner, (x, y) = make_learner(hidden=3), regression()
    said_by(learner, (x, y), chains=12)
    rows = kept_samples.predictions(learner, tf.constant(x))
    expected = list(learner.posterior_predict(x))
    assert_equal(rows, expected, rtol=1e-5, atol=1e-6)  # float32
    learner.reset_posterior()
    (row,) = kept_samples.predictions(learner, tf.constant(x))
    assert_equal([row], [learner(x)], rtol=1e-5, atol=1e-6)


def test_check_costs_a_tenth_of_training_at_most():
    small, large = make_learner(), make_learner(hidden=100_000)
    for learner in (small, large):
        learner._prepare()
        learner.posterior.count.assign(100)  # 32 samples in use
    number = kept_samples.number_to_see
    assert number(small, steps=10, batch_size=10) == 500
    # 0.1 * 3 * 1000 * 32 / 32
    assert number(large, steps=1000, batch_size=32) == 300
    assert number(large, steps=60, batch_size=32) == 0


# e. Too few chains, and who is asked.


def test_few_samples_are_told_apart_from_few_chains():
    few = one(said_by(make_learner(), regression(), chains=9), "updated 9 ")
    assert "too few for anything to be learned" in few
    (said,) = said_by(make_learner(), regression(), chains=12)
    assert "averages over 6 samples of the weights" in said
    assert "room for 32, and 12 chains have run" in said
    assert said_by(make_learner(), regression(), chains=15) == []


def test_other_estimators_are_not_judged(monkeypatch):
    def fail(*arguments):
        raise AssertionError

    monkeypatch.setattr(evidence_verdict.EvidenceVerdict, "__init__", fail)
    learner = make_learner(hs.SGLD(0.02), initial_value=1e-2)
    learner.compile(
        hs.SGLD(0.02),
        hs.losses.LearnableGaussianLoss(),
        hypergradient=hs.estimators.HPOSGLD(1, 4),
    )
    learner.fit(*regression(), outer_split=0.3, batch_size=10, verbose=0)


def test_datasets_are_judged_as_arrays_are():
    x, y = classes()
    learner = make_learner(loss=BINARY, update="optimizer", **STRONG)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(100)
    one(said_by(learner, (data,)), "Next to nothing of the classes is")


def test_replicas_are_judged_as_one_device_is(mirrored):
    x, _ = regression()
    with mirrored.scope():
        learner = make_learner(
            hs.SGLD(0.1, integrator="exponential", seed=1), **STRONG
        )
        learner._prepare()
    learner.posterior.count.assign(100)
    learner.posterior.written.assign(50)
    for value in learner.posterior.values:
        value.assign(np.random.default_rng(0).normal(size=value.shape))
    rows = kept_samples.predictions(learner, tf.constant(x))
    expected = list(learner.posterior_predict(x))
    assert_equal(rows, expected, rtol=1e-5, atol=1e-6)  # float32


def test_few_examples_of_a_dataset_say_nothing_of_all():
    x, y = regression()
    learner = make_learner(update="optimizer", **STRONG)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    assert said_by(learner, (data,)) == []
