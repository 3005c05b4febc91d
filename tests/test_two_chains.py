"""Two chains from far starts agree where training was long enough."""

import importlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import state
from builders import values

import keras_hposgld as hs

# The function of that name hides the module.
module = importlib.import_module("keras_hposgld.diagnostics.two_chains")
L = keras.layers
N = 60


def make_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype("float32")
    y = x[:, :1] - x[:, 1:2] + 0.5 * rng.normal(size=(N, 1))
    return x, y.astype("float32")


def make_learner(update="gibbs", strength=None, model=None, **arguments):
    keras.utils.set_random_seed(0)
    strength = strength or hs.regularizers.LearnableL2(granularity="input")
    dense = L.Dense(1, kernel_regularizer=strength)
    model = model or keras.Sequential([keras.Input((3,)), dense])
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(
        **dict(
            optimizer=hs.SGLD("auto", seed=0),
            loss=hs.losses.LearnableGaussianLoss(),
            hypergradient=hs.estimators.Evidence(update=update),
        )
        | arguments
    )
    return learner


def pair_of(learner, chains, data=None, **arguments):
    x, y = data or make_data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the short ones are too short
        return hs.diagnostics.two_chains(
            learner, x, y, steps_per_epoch=10 * chains, verbose=0, **arguments
        )


def test_long_chains_agree():
    learner = make_learner()
    before = [*state(learner), *values(learner)]
    pair = pair_of(learner, chains=600)
    assert len(pair.rhat) == 2
    assert [rhat.shape for rhat in pair.rhat.values()] == [(3,), ()]
    for rhat in pair.rhat.values():
        assert rhat.max() < 1.2
    assert pair.prediction_rhat.shape == (N, 1)
    assert np.median(pair.prediction_rhat) < 1.1
    # Each had a chain of its own, and the learner has none.
    ends = [copy.trainable_variables[0].numpy() for copy in pair[2:]]
    assert np.all(ends[0] != ends[1])
    for copy in pair[2:]:
        assert copy.model is not learner.model
        assert int(copy.outer_iterations) == 600
    assert_equal([*state(learner), *values(learner)], before)


def test_short_chains_from_far_starts_disagree():
    pair = pair_of(make_learner("optimizer"), chains=10, factor=1000.0)
    for rhat in pair.rhat.values():
        assert rhat.min() > 1.5
    assert np.median(pair.prediction_rhat) > 1.5


class Seen(keras.callbacks.Callback):
    """The strengths before the first chain, and the weights."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 0:
            seen = [values(self.model)[0]]
            seen += [w.numpy() for w in self.model.trainable_variables]
            seeds = (self.model.seed, self.model.sampler.seed)
            self.found.append((seen, seeds))


@pytest.mark.parametrize(
    "given", [True, pytest.param(False, marks=pytest.mark.slow)]
)
def test_strengths_begin_apart_and_weights_together(given):
    arguments = dict(initial_value=0.03) if given else {}
    strength = hs.regularizers.LearnableL2(granularity="input", **arguments)
    learner, seen = make_learner("optimizer", strength), Seen()
    pair_of(learner, 10, factor=20.0, callbacks=[seen])
    (weak, one), (strong, other) = seen.found
    usual = strength.initial_value if given else 0.5 / N
    if given:
        np.testing.assert_allclose(weak[0], usual / 20, rtol=1e-4)
    np.testing.assert_allclose(strong[0] / weak[0], 400.0, rtol=1e-4)
    start = [w.numpy() for w in learner.trainable_variables]
    assert_equal(weak[1:], start)
    assert_equal(strong[1:], start)
    assert one[0] != other[0] and one[1] != other[1]


@pytest.mark.slow
def test_strengths_stay_within_their_bound():
    strength = hs.regularizers.LearnableL2(
        0.5, granularity="input", max_value=1.0
    )
    seen = Seen()
    pair_of(make_learner("optimizer", strength), 10, callbacks=[seen])
    _, (strong, _) = seen.found
    np.testing.assert_allclose(strong[0], 0.999, rtol=1e-5)


def test_records_are_of_every_so_many_chains(monkeypatch):
    stacked, numbers = module._Course.stacked, []

    def count(course):
        numbers.append({len(rows) for rows in course.values.values()})
        return stacked(course)

    monkeypatch.setattr(module._Course, "stacked", count)
    pair_of(make_learner("optimizer"), 24, every=3)
    assert numbers == [{8}, {8}]


def test_what_a_learner_is_made_of_is_copied():
    x, y = make_data()
    adapted = L.Normalization()
    adapted.adapt(x)
    inputs = keras.Input((3,))
    hidden = L.Dense(2, "tanh", kernel_initializer="zeros")(adapted(inputs))
    model = keras.Model(inputs, L.Dense(1)(hidden))
    learner = make_learner(
        "optimizer",
        model=model,
        loss=lambda y, y_pred: tf.nn.sigmoid_cross_entropy_with_logits(
            y, y_pred
        )[:, 0],
        metrics=["mae"],
        posterior_samples=0,
    )
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(N)
    pair = pair_of(learner, 10, (data, None))
    assert pair.prediction_rhat.size == 0
    # The prior that the evidence gives a learner without one.
    assert len(pair.rhat) == 4
    for copy in pair[2:]:
        assert copy.posterior.number == 0
        np.testing.assert_array_equal(copy.model.layers[1].mean, adapted.mean)


def test_constants_that_are_the_same_agree():
    same, other = np.ones((8, 2)), np.full((8, 2), 2.0)
    np.testing.assert_array_equal(module._rhat(same, same), [1.0, 1.0])
    assert np.all(module._rhat(same, other) > 1e6)


def untrained():
    return make_learner(posterior_samples=4)


def test_refuses():
    x, y = make_data()
    two_chains = hs.diagnostics.two_chains
    with pytest.raises(TypeError, match="`learner` must be a `BilevelModel`"):
        two_chains(keras.Sequential(), x, y)
    other = make_learner(hypergradient="hpo_sgld", optimizer=hs.SGLD(0.01))
    with pytest.raises(ValueError, match='hypergradient="evidence"'):
        two_chains(other, x, y)
    trained = untrained()
    trained.outer_iterations.assign(3)
    with pytest.raises(ValueError, match="a learner after 3 chains"):
        two_chains(trained, x, y)
    for wrong in (1.0, 0.0, -2.0):
        with pytest.raises(ValueError, match="`factor` must be"):
            two_chains(untrained(), x, y, factor=wrong)
    with pytest.raises(ValueError, match="`every` must be"):
        two_chains(untrained(), x, y, every=0)
    with pytest.raises(ValueError, match="that can be read twice"):
        two_chains(untrained(), iter([(x, y)]))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(N)
    with pytest.raises(ValueError, match="`inputs` must be given"):
        two_chains(untrained(), data)
    with pytest.raises(ValueError, match="at least 8 records.*Received: 7"):
        pair_of(untrained(), 7, (data, None), inputs=x[:9])
