"""Learned weights of sources, against closed forms; ways to feed them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs

N, S = 12, 4
RNG = np.random.default_rng(0)
TABLE = np.array([0.4, -1.0, 0.1, 1.2])
SOURCES = np.arange(N) % S
X = RNG.normal(size=(N, 3))
Y = X @ [[1.0], [-2.0], [0.5]] + 0.3 * SOURCES[:, None]
X_OUT = RNG.normal(size=(8, 3))
Y_OUT = X_OUT @ [[1.0], [-2.0], [0.5]]
# Some abstain on some, all of them on the sixth.
VOTES = np.where(RNG.uniform(size=(N, S)) < 0.6, Y + RNG.normal(size=S), np.nan)
VOTES[5] = np.nan
OUTER = (X_OUT, Y_OUT)


def weights_of(table, normalize):
    """The weights in NumPy, and their derivatives by the table."""
    if normalize == "softmax":
        w = np.exp(table) / np.exp(table).sum()
        return w, np.diag(w) - np.outer(w, w)
    w = 1 / (1 + np.exp(-table))
    return w, np.diag(w * (1 - w))


def make_learner(normalize="softmax", table=TABLE, outputs=1, **arguments):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(outputs)])
    weights = hs.SourceWeights(S, normalize)
    weights.table.assign(table)
    learner = hs.BilevelModel(model, example_weights=weights, seed=1)
    defaults = dict(
        optimizer=hs.SGLD(0.1, seed=3),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(0, 1),
        hyper_optimizer=keras.optimizers.SGD(1.0),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, x=X, y=Y, **arguments):
    defaults = dict(outer_data=OUTER, epochs=1, verbose=0)
    if isinstance(x, np.ndarray):
        defaults |= dict(batch_size=N, outer_batch_size=8)
    return learner.fit(x, y, **(defaults | arguments))


def closed_form(x, y, sources, table, kernel, normalize):
    """One step on all examples: kernel and bias, and the hypergradient.

    The inner objective is sum_i w(s_i) (x_i k + c - y_i)^2 / sum_i w(s_i).
    """
    w, by_table = weights_of(table, normalize)
    x, x_out = (np.hstack([a, np.ones((len(a), 1))]) for a in (x, X_OUT))
    k = np.vstack([kernel, [[0.0]]])
    each = 2 * x * (x @ k - y)
    share = w[sources] / w[sources].sum()
    gradient = share @ each
    moved = k - 0.1 * gradient[:, None]
    v = 2 * x_out.T @ (x_out @ moved - Y_OUT) / len(x_out)
    by_weight = np.zeros(S)
    np.add.at(
        by_weight,
        sources,
        (each @ v)[:, 0] - (gradient @ v)[0],
    )
    by_weight /= w[sources].sum()
    return moved, -0.1 * by_table @ by_weight


def check_step(learner, x, y, sources, normalize, kernel):
    moved, hypergradient = closed_form(x, y, sources, TABLE, kernel, normalize)
    layer = learner.model.layers[-1]
    found = np.vstack([layer.kernel, [layer.bias]])
    np.testing.assert_allclose(found, moved, rtol=1e-10)
    assert np.abs(hypergradient).min() > 1e-5
    np.testing.assert_allclose(
        TABLE - learner.example_weights.table, hypergradient, rtol=1e-8
    )


@pytest.mark.parametrize("normalize", ["softmax", "bounded"])
@pytest.mark.parametrize(
    ("estimator", "jit_compile"),
    [
        (hs.estimators.HPOSGLD(0, 1), True),
        (hs.estimators.RMD(num_steps=1), False),
        pytest.param(
            hs.estimators.FMD(num_steps=1), False, marks=pytest.mark.slow
        ),
    ],
)
def test_one_step_is_the_closed_form(
    normalize, estimator, jit_compile, float64
):
    learner = make_learner(
        normalize, hypergradient=estimator, jit_compile=jit_compile
    )
    kernel = learner.model.layers[-1].kernel.numpy()
    fit(learner, sources=SOURCES)
    check_step(learner, X, Y, SOURCES, normalize, kernel)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_votes_are_examples_of_their_sources(jit_compile, float64):
    learner = make_learner("bounded", jit_compile=jit_compile)
    kernel = learner.model.layers[-1].kernel.numpy()
    fit(learner, X, VOTES, sources="votes")
    rows, sources = np.nonzero(~np.isnan(VOTES))
    votes = VOTES[rows, sources][:, None]
    check_step(learner, X[rows], votes, sources, "bounded", kernel)
    x, y, found = hs.data.expand_votes(X, VOTES)
    np.testing.assert_array_equal(x, X[rows])
    np.testing.assert_array_equal(y, votes[:, 0])
    np.testing.assert_array_equal(found, sources)


def test_classes_are_voted_on_and_metrics_count_votes():
    # Whatever is learned: the accuracy is that of the votes, not of -1.
    votes = np.array([[0, -1, 1, 0], [2, 2, -1, -1], [-1, -1, -1, -1]] * 4)
    learner = make_learner(
        outputs=3,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        optimizer=hs.SGLD(1e-9),
    )
    logs = fit(
        learner,
        *(X, votes),
        sources="votes",
        outer_data=(X_OUT, np.arange(8) % 3),
    ).history
    predicted = learner.predict(X, verbose=0).argmax(-1)[:, None]
    given = votes >= 0
    expected = (predicted == votes)[given].mean()
    np.testing.assert_allclose(logs["accuracy"], [expected], rtol=1e-6)


@pytest.mark.parametrize("normalize", ["softmax", "bounded"])
def test_batch_without_votes_changes_nothing(normalize):
    learner = make_learner(normalize)
    before = [weight.numpy() for weight in learner.weights]
    nobody = np.full_like(VOTES, np.nan)
    nobody[0, 0] = 1.0  # else it is refused
    data = tf.data.Dataset.from_tensors((X[:4], nobody[4:8]))
    fit(learner, data, None, sources="votes", steps_per_epoch=1)
    named = zip(learner.weights, before, strict=True)
    for weight, value in [(w, v) for w, v in named if "optim" not in w.path]:
        if "kernel" in weight.path or "table" in weight.path:
            np.testing.assert_array_equal(weight, value, err_msg=weight.path)
    assert np.isfinite(learner.history.history["loss"]).all()


def as_batches():
    data = tf.data.Dataset.from_tensor_slices((X, Y, SOURCES))
    return data.batch(N), {}


def as_batches_of_votes():
    data = tf.data.Dataset.from_tensor_slices((X, VOTES))
    return data.batch(N), {"sources": "votes"}


def as_generator():
    return ((X, Y, SOURCES) for _ in range(9)), {"steps_per_epoch": 1}


@pytest.mark.parametrize("way", [as_batches, as_batches_of_votes, as_generator])
def test_every_kind_of_data_says_where_examples_come_from(way, float64):
    learner, other = make_learner(), make_learner()
    data, arguments = way()
    fit(learner, data, None, **arguments)
    y, sources = Y, SOURCES
    if arguments.get("sources") == "votes":
        y, sources = VOTES, "votes"
    fit(other, X, y, sources=sources)
    for a, b in zip(learner.weights, other.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, err_msg=a.path)


def test_refit_trains_with_the_weights_of_the_sources():
    def refit(learner, *data, **arguments):
        keras.utils.set_random_seed(4)
        learner.refit(
            *data,
            optimizer=keras.optimizers.SGD(0.1),
            batch_size=100,
            shuffle=False,
            verbose=0,
            **arguments,
        )
        return [weight.numpy() for weight in learner.trainable_variables]

    learner = make_learner()
    w, _ = weights_of(TABLE, "softmax")
    found = refit(learner, X, Y, sources=SOURCES)
    own = w[SOURCES] / w[SOURCES].mean()
    expected = refit(learner, X, Y, sample_weight=own)
    x, y, sources = hs.data.expand_votes(X, VOTES)
    own = w[sources] / w[sources].mean()
    found += refit(learner, X, VOTES, sources="votes")
    expected += refit(learner, x, y, sample_weight=own)
    data = tf.data.Dataset.from_tensors((X, VOTES))
    keras.utils.set_random_seed(4)
    learner.refit(
        data, sources="votes", optimizer=keras.optimizers.SGD(0.1), verbose=0
    )
    found += [weight.numpy() for weight in learner.trainable_variables]
    expected += expected[-2:]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "sources", [pytest.param(SOURCES, marks=pytest.mark.slow), "votes"]
)
def test_two_replicas_learn_as_one_does(mirrored, sources, float64):
    # Sources are shared out unevenly, so each replica has another mean.
    y = VOTES if isinstance(sources, str) else Y
    learned = []
    for scope in (tf.distribute.get_strategy().scope, mirrored.scope):
        with scope():
            learner = make_learner(hypergradient=hs.estimators.HPOSGLD(1, 2))
        fit(learner, X, y, sources=sources, batch_size=4, epochs=3)
        learned.append([w.numpy() for w in learner.weights])
    assert np.abs(learned[0][-1] - TABLE).max() > 1e-3
    for a, b in zip(*learned, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_a_source_that_misleads_gets_a_small_weight():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 3))
    y = x @ [[1.0], [-2.0], [0.5]]
    sources = rng.integers(S, size=200)
    y[sources == 1] *= -1.0
    learner = make_learner(
        table=np.zeros(S), hyper_optimizer=keras.optimizers.Adam(0.2)
    )
    fit(learner, x, y, sources=sources, batch_size=50, epochs=40)
    weights = learner.example_weights.numpy()
    assert weights[1] < 0.02
    assert weights[[0, 2, 3]].min() > 0.1
    np.testing.assert_allclose(weights.sum(), 1.0, rtol=1e-5)


def test_weights_start_where_they_are_told_to():
    start = [0.1, 0.2, 0.3, 0.2]
    for normalize in ("softmax", "bounded"):
        weights = hs.SourceWeights(S, normalize, initial_weights=start)
        np.testing.assert_allclose(
            weights.numpy(), np.divide(start, np.sum(start)), rtol=1e-5
        )
    with pytest.raises(ValueError, match="`initial_weights` must lie"):
        hs.SourceWeights(S, initial_weights=[0.1, 0.2, 0.3, 1.5])
    with pytest.raises(ValueError, match="`normalize` must be one of"):
        hs.SourceWeights(S, normalize="sum")


@pytest.mark.parametrize(
    ("data", "arguments", "message"),
    [
        ((X, Y), {}, "`sources` must be an integer for each .*sources=None"),
        ((X, Y), {"sources": "all"}, "Received: sources='all'"),
        ((X, Y), {"sources": SOURCES[:3]}, r"shape \(3,\).* 12 examples"),
        ((X, Y), {"sources": SOURCES / 2}, "dtype float64"),
        ((X, Y), {"sources": SOURCES + 1}, "sources from 1 to 4"),
        ((X, Y), {"sources": "votes"}, "needs targets .*4 sources"),
        ((X, VOTES * np.nan), {"sources": "votes"}, "every source abstains"),
        (
            (X, Y),
            {"sources": SOURCES, "class_weight": {0: 1.0}},
            "`class_weight` and `example_weights` exclude",
        ),
        (
            (X, Y),
            {"sources": SOURCES, "sample_weight": np.ones(N)},
            "`sample_weight` and `example_weights` exclude",
        ),
        (
            (X, Y),
            {"sources": SOURCES, "outer_data": None, "outer_split": 0.3},
            "`outer_split` cannot be combined with `sources`",
        ),
        (
            (X, Y),
            {"sources": SOURCES, "validation_split": 0.3},
            "`validation_split` cannot be combined with `sources`",
        ),
        (
            (tf.data.Dataset.from_tensors((X, Y)), None),
            {},
            r"must be \(inputs, targets, sources\)",
        ),
    ],
)
def test_data_that_do_not_say_it_are_refused(data, arguments, message):
    learner = make_learner()
    with pytest.raises(ValueError, match=message):
        fit(learner, *data, **arguments)


def test_what_has_no_weights_of_sources_refuses_them():
    for weights, message in (
        (None, "Received: sources and no example_weights"),
        (hs.ExampleWeights(N), "needs `example_weights=SourceWeights"),
    ):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        learner = hs.BilevelModel(
            model,
            example_weights=weights,
            regularizer=hs.regularizers.LearnableL2(),
        )
        learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
        with pytest.raises(ValueError, match=message):
            fit(learner, sources=SOURCES)
        with pytest.raises(ValueError, match=message):
            learner.refit(X, Y, sources=SOURCES, verbose=0)


def test_votes_need_one_output():
    inputs = keras.Input((3,))
    outputs = [keras.layers.Dense(1)(inputs) for _ in range(2)]
    learner = hs.BilevelModel(
        keras.Model(inputs, outputs), example_weights=hs.SourceWeights(S)
    )
    learner.compile(optimizer=hs.SGLD(0.05), loss=["mse", "mse"])
    with pytest.raises(ValueError, match="a model with one output"):
        fit(learner, X, VOTES, sources="votes")
