"""Scores of wrong labels: the channel's law, the forms of data, refusals."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

import keras_hposgld as hs
from keras_hposgld.diagnostics import label_channel

L = keras.layers
scores_of = hs.diagnostics.label_error_scores
probabilities_of = hs.diagnostics.label_probabilities

CHANNEL = np.array([[0.6, 0.3, 0.1], [0.05, 0.8, 0.15], [0.4, 0.0, 0.6]])


def drawn(n, power=1.0):
    """Probabilities p with p^power calibrated, and labels by `CHANNEL`."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([0.3, 0.3, 0.3], n)
    true = (rng.random((n, 1)) > p.cumsum(1)).sum(1)
    given = (rng.random((n, 1)) > CHANNEL[true].cumsum(1)).sum(1)
    return np.log(np.maximum(p, 1e-12)) / power, true, given


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_channel_and_power_are_found(power):
    logs, true, given = drawn(20_000, power)
    fit = label_channel.fit_label_channel(logs, given)
    # Some 6700 examples a class: a share has a standard error of 0.006 where
    # the true class is known, and up to twice that where it is guessed.
    np.testing.assert_allclose(fit.channel, CHANNEL, atol=0.04)
    assert fit.power == power
    exact = np.exp(power * logs) * CHANNEL[:, given].T
    exact /= exact.sum(1, keepdims=True)
    rows = np.arange(len(given))
    # A probability moves by at most a quarter of the relative error of T.
    away = np.abs(fit.posterior[rows, given] - exact[rows, given])
    assert away.mean() < 0.01
    is_wrong = true != given
    # Nobody who knows p and g alone orders better than the exact law.
    best = roc_auc_score(is_wrong, -exact[rows, given])
    found = roc_auc_score(is_wrong, -fit.posterior[rows, given])
    assert best - 0.002 < found < best + 0.001
    assert found > roc_auc_score(is_wrong, -np.exp(logs[rows, given])) + 0.01


def test_fitting_climbs_the_likelihood(monkeypatch):
    logs, _, given = drawn(300, power=1.25)
    monkeypatch.setattr(label_channel, "PRIOR_COUNT", 0.0)
    values = []
    for number in (1, 2, 5, 25):
        monkeypatch.setattr(label_channel, "ITERATIONS", number)
        fit = label_channel._fit(logs, given, 1.25)
        values.append(fit.log_likelihood)
        np.testing.assert_allclose(fit.posterior.sum(1), 1.0)
        np.testing.assert_allclose(fit.channel.sum(1), 1.0)
    assert np.all(np.diff(values) > 0)


def test_certain_predictions_stay_as_they_are():
    # A class that no label names is among them, as in real data.
    logs = np.log(np.maximum(np.eye(4)[[0, 1, 2, 0, 3]], 1e-12))
    fit = label_channel.fit_label_channel(logs, np.array([0, 1, 1, 2, 0]))
    np.testing.assert_allclose(
        fit.posterior, np.eye(4)[[0, 1, 2, 0, 3]], atol=1e-4
    )


SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_learner(n, output, loss=SPARSE, size=4):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((size,)), *output])
    learner = hs.BilevelModel(
        model, example_weights=hs.ExampleWeights(n), seed=0
    )
    learner.compile(
        optimizer=hs.SGLD(0.1, temperature=0.0, seed=0),
        loss=loss,
        hypergradient=hs.estimators.AdjointSGLD(burn_in=2, num_samples=2),
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    return learner


def make_data(num_classes=3, n=60):
    rng = np.random.default_rng(0)
    y = np.arange(n) % num_classes
    x = rng.normal(size=(n, 4)) + 2.0 * np.eye(4)[y]
    return x.astype("float32"), y.astype("int32")


@pytest.fixture(scope="module")
def learned():
    x, y = make_data()
    learner = make_learner(40, [L.Dense(3)])
    learner.fit(
        x[:40], y[:40], outer_data=(x[40:], y[40:]), batch_size=20, verbose=0
    )
    return learner, x[:40], y[:40]


def learner_like(learner, output, weights=None, **arguments):
    """A learner of that output, with the same weights unless some are given."""
    other = make_learner(40, output, **arguments)
    other.model.set_weights(weights or learner.model.get_weights())
    other.example_weights.table.assign(learner.example_weights.table)
    return other


@pytest.fixture(scope="module")
def digits():
    """A learner on digits of which 60 % have a label drawn by a channel."""
    x, true = load_digits(return_X_y=True)
    x, rng = (x / 16.0).astype("float32"), np.random.default_rng(0)
    order = rng.permutation(len(x))
    x, true = x[order], true[order]
    given, moved = true.copy(), rng.random(1200) < 0.6
    given[:1200][moved] = (true[:1200][moved] + 1) // 2  # few classes get them
    keras.utils.set_random_seed(0)
    learner = make_learner(1200, [L.Dense(10)], size=64)
    learner.fit(
        *(x[:1200], given[:1200]),
        outer_data=(x[1200:1400], true[1200:1400]),
        batch_size=400,
        epochs=150,
        verbose=0,
    )
    return learner, x, given, true


def test_wrong_digits_are_told_better_than_by_a_plain_loss(digits):
    learner, x, given, true = digits
    outer, is_wrong = (x[1200:1400], true[1200:1400]), given != true
    x, given, is_wrong = x[:1200], given[:1200], is_wrong[:1200]

    def auc(suspicion):
        return roc_auc_score(is_wrong, suspicion)

    def loss_after(*data):
        model = keras.Sequential([keras.Input((64,)), L.Dense(10)])
        model.compile(keras.optimizers.Adam(0.02), loss=SPARSE)
        model.fit(*data, epochs=20, batch_size=50, verbose=0)
        return model, keras.losses.sparse_categorical_crossentropy(
            given, model.predict(x, verbose=0), from_logits=True
        )

    _, loss = loss_after(x, given)
    alone, outer_loss = loss_after(*outer)
    ours = auc(scores_of(learner, x, given))
    print(
        f"plain loss {auc(loss):.3f}, outer loss {auc(outer_loss):.3f}, "
        f"weights {auc(-learner.example_weights.numpy()):.3f}, ours {ours:.3f}"
    )
    assert ours > auc(loss) + 0.02
    assert ours > auc(-learner.example_weights.numpy())
    both = auc(scores_of(learner, x, given, models=[alone]))
    print(f"with the outer model {both:.3f}")
    assert both > auc(outer_loss)


def test_scores_are_one_minus_the_probability_of_the_label(learned):
    learner, x, y = learned
    y = np.roll(y, 1)
    probabilities = probabilities_of(learner, x, y)
    np.testing.assert_allclose(probabilities.sum(1), 1.0)
    np.testing.assert_array_equal(
        scores_of(learner, x, y), 1.0 - probabilities[np.arange(40), y]
    )


@pytest.mark.parametrize("form", ["column", "one-hot", "float", "pandas"])
def test_forms_of_labels(learned, form):
    learner, x, y = learned
    given = {
        "column": lambda: y[:, None],
        "one-hot": lambda: np.eye(3)[y],
        "float": lambda: y.astype("float32"),
        "pandas": lambda: pytest.importorskip("pandas").Series(y),
    }[form]()
    np.testing.assert_array_equal(
        scores_of(learner, x, given), scores_of(learner, x, y)
    )


def test_logits_and_probabilities_score_alike(learned):
    learner, x, y = learned
    scores = scores_of(learner, x, y)
    soft = learner_like(
        *(learner, [L.Dense(3), L.Softmax()]),
        loss="sparse_categorical_crossentropy",
    )
    # float32 probabilities, of which the smallest are 1e-4 here.
    np.testing.assert_allclose(scores_of(soft, x, y), scores, atol=1e-5)
    for loss in (
        keras.losses.CategoricalCrossentropy(from_logits=True),
        hs.losses.LearnableLabelSmoothing(0.1, from_logits=True),
    ):
        other = learner_like(learner, [L.Dense(3)])
        other.compile(hs.SGLD(0.1), loss=loss, outer_loss=SPARSE)
        np.testing.assert_array_equal(scores_of(other, x, y), scores)


@pytest.mark.parametrize("from_logits", [True, False])
def test_one_output_for_two_classes(learned, from_logits):
    x, y = make_data(num_classes=2)
    x, y, given = x[:40], y[:40], y[:40].copy()
    given[:8] = 1 - y[:8]
    kernel, bias = np.array([[-1.0], [1.0], [0.0], [0.0]]), np.zeros(1)
    learner = learner_like(
        learned[0],
        [L.Dense(1)] + [L.Activation("sigmoid")] * (not from_logits),
        weights=[kernel, bias],
        loss=keras.losses.BinaryCrossentropy(from_logits=from_logits),
    )
    pair = learner_like(
        learned[0],
        [L.Dense(2)],
        weights=[np.hstack([0 * kernel, kernel]), np.zeros(2)],
    )
    scores = scores_of(learner, x, given)
    assert probabilities_of(learner, x, given).shape == (40, 2)
    # float32 sigmoids here, logits there.
    np.testing.assert_allclose(scores, scores_of(pair, x, given), atol=1e-5)
    np.testing.assert_array_equal(
        scores_of(learner, x, given[:, None].astype("float32")), scores
    )
    assert scores[:8].mean() > scores[8:].mean() + 0.4


def test_models_are_averaged(learned):
    learner, x, y = learned
    other = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    logits = [m.predict(x, verbose=0) for m in (learner, other, other)]
    mean = np.mean([keras.ops.log_softmax(one) for one in logits], axis=0)
    exact = label_channel.fit_label_channel(mean.astype("float64"), y)
    np.testing.assert_allclose(
        probabilities_of(learner, x, y, models=[other, other], batch_size=7),
        exact.posterior,
        atol=1e-6,  # float32 logarithms here
    )


def test_nothing_of_the_learner_changes_and_a_saved_one_scores(
    learned, tmp_path
):
    learner, x, y = learned
    before = [np.array(v) for v in learner.variables]
    scores = scores_of(learner, x, y)
    for old, new in zip(before, learner.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    np.testing.assert_array_equal(scores_of(loaded, x, y), scores)


def refusals():
    x, y = make_data()
    return {
        "more inputs": (x, y, ValueError, "`x` must be the training examples"),
        "a label less": (x[:40], y[:39], ValueError, "label for each example"),
        "unknown class": (x[:40], y[:40] + 1, ValueError, "from 1 to 3"),
        "fraction": (x[:40], y[:40] + 0.5, ValueError, "`y` must be integers"),
        "soft": (x[:40], np.full((40, 3), 1 / 3), ValueError, "one-hot"),
        "two columns": (x[:40], np.zeros((40, 2)), ValueError, "one-hot"),
    }


@pytest.mark.parametrize("case", refusals())
def test_wrong_data_are_refused(learned, case):
    x, y, error, message = refusals()[case]
    with pytest.raises(error, match=message):
        scores_of(learned[0], x, y)


def test_a_dataset_is_refused(learned):
    data = tf.data.Dataset.from_tensor_slices(learned[1]).batch(4)
    with pytest.raises(ValueError, match="`x` must be arrays"):
        scores_of(learned[0], data, learned[2])


def test_learners_that_learned_no_weights_are_refused(learned):
    _, x, y = learned
    plain = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    with pytest.raises(TypeError, match="learned weights of the examples"):
        scores_of(plain, x, y)
    learner = make_learner(40, [L.Dense(3)])
    with pytest.raises(ValueError, match="weights are all 0.5"):
        scores_of(learner, x, y)


@pytest.mark.parametrize("loss", ["mse", hs.losses.LearnableGaussianLoss()])
def test_regressions_are_refused(learned, loss):
    learner = learner_like(learned[0], [L.Dense(3)])
    learner.compile(hs.SGLD(0.1), loss=loss, outer_loss="mse")
    with pytest.raises(ValueError, match="cross-entropy|be probabilities"):
        scores_of(learner, *learned[1:])


def test_other_outputs_are_refused(learned):
    _, x, y = learned
    learner = learner_like(learned[0], [L.Dense(3)])
    learner.compile(hs.SGLD(0.1), loss="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="must be probabilities"):
        scores_of(learner, x, y)
    learner.compile(hs.SGLD(0.1), loss="binary_crossentropy")
    with pytest.raises(ValueError, match="Several labels of an example"):
        scores_of(learner, x, y)
    wide = keras.Sequential([keras.Input((4,)), L.Dense(5)])
    with pytest.raises(ValueError, match="as many classes as the learner"):
        scores_of(learned[0], x, y, models=[wide])
    inputs = keras.Input((4,))
    pair = keras.Model(inputs, [L.Dense(3)(inputs), L.Dense(3)(inputs)])
    with pytest.raises(ValueError, match="one output"):
        scores_of(learned[0], x, y, models=[pair])
    broken = keras.Sequential([keras.Input((4,)), L.Dense(3)])
    broken.layers[0].bias.assign([0.0, np.nan, 0.0])
    with pytest.raises(ValueError, match="must be finite"):
        scores_of(learned[0], x, y, models=[broken])
