"""Learned example weights against closed forms, and every way to feed them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs

N = 24


def make_data(n=N, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5]]).astype("float32")


def make_table(start=None):
    weights = hs.ExampleWeights(N, initial_value=0.3, max_value=2.0)
    if start is None:
        start = np.random.default_rng(3).normal(size=N)
    weights.table.assign(start)
    return weights


def make_learner(weights, estimator=None, **arguments):
    keras.utils.set_random_seed(2)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    learner = hs.BilevelModel(model, example_weights=weights, seed=1)
    defaults = dict(
        optimizer=hs.SGLD(0.1, seed=3),
        loss="mse",
        hypergradient=estimator or hs.estimators.HPOSGLD(0, 1),
        hyper_optimizer=keras.optimizers.SGD(1.0),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, x=None, y=None, **arguments):
    if x is None:
        x, y = make_data()
    defaults = dict(
        outer_data=make_data(8, seed=1), batch_size=8, epochs=1, verbose=0
    )
    if not isinstance(x, np.ndarray):
        del defaults["batch_size"]
    return learner.fit(x, y, **(defaults | arguments))


def test_values_lie_between_their_bounds():
    weights = hs.ExampleWeights(5, initial_value=0.3, max_value=2.0)
    np.testing.assert_allclose(weights.numpy(), 0.3, rtol=1e-6)
    weights.table.assign([-2.0, -1.0, 0.0, 1.0, 2.0])
    expected = 2 / (1 + np.exp([2.0, 1.0, 0.0, -1.0, -2.0]))
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-6)
    drawn = weights(np.array([3, 0, 3]))
    np.testing.assert_allclose(drawn, expected[[3, 0, 3]], rtol=1e-6)
    assert weights.numpy().shape == (5,)


def closed_form(x, y, x_out, y_out, table, kernel, learning_rate=0.1):
    """One step on all examples: kernel, and the derivative by the table.

    With weights w = 2 / (1 + exp(-t)), the inner objective is the mean of
    w (x k + c - y)^2; k and c are the kernel and the bias, which starts at 0.
    """
    ones, ones_out = np.ones((len(x), 1)), np.ones((len(x_out), 1))
    x, x_out = np.hstack([x, ones]), np.hstack([x_out, ones_out])
    w = 2 / (1 + np.exp(-table))
    k = np.vstack([kernel, [[0.0]]])
    by_example = 2 * x * (x @ k - y) / len(x)  # without its weight
    moved = k - learning_rate * (w @ by_example)[:, None]
    v = 2 * x_out.T @ (x_out @ moved - y_out) / len(x_out)
    slope = w * (1 - w / 2)
    return moved, -learning_rate * slope * (by_example @ v)[:, 0]


@pytest.mark.parametrize(
    "estimator", [None, hs.estimators.RMD(num_steps=1), "fmd"]
)
def test_one_step_is_the_closed_form(estimator):
    # Whichever order the examples come in: each has to meet its own weight.
    if estimator == "fmd":
        estimator = hs.estimators.FMD(num_steps=1)
    weights = make_table()
    table = weights.table.numpy().astype("float64")
    learner = make_learner(weights, estimator)
    kernel = learner.model.layers[-1].kernel.numpy().astype("float64")
    fit(learner, batch_size=N, outer_batch_size=8)
    moved, hypergradient = closed_form(
        *make_data(), *make_data(8, seed=1), table, kernel
    )
    layer = learner.model.layers[-1]
    np.testing.assert_allclose(layer.kernel, moved[:-1], rtol=1e-4)
    np.testing.assert_allclose(layer.bias, moved[-1], rtol=1e-4)
    assert np.abs(hypergradient).min() > 1e-6
    np.testing.assert_allclose(
        table - weights.table, hypergradient, rtol=2e-2, atol=1e-6
    )


class Sequence(keras.utils.PyDataset):
    """Three batches `(x, y, index)`."""

    def __len__(self):
        return 3

    def __getitem__(self, position):
        index = np.arange(position, N, 3)
        x, y = make_data()
        return x[index], y[index], index


def as_batches():
    return tf.data.Dataset.from_tensor_slices(
        (*make_data(), np.arange(N))
    ).batch(8)


def as_examples():
    # What `enumerate` gives, put in order.
    pairs = tf.data.Dataset.from_tensor_slices(make_data()).enumerate()
    return pairs.map(lambda index, pair: (*pair, index)).shuffle(N, seed=0)


@pytest.mark.parametrize("way", ["arrays", as_batches, as_examples, Sequence])
def test_every_kind_of_data_draws_each_example_with_its_weight(way):
    # All weights but one are as good as zero, so a step can only be along that
    # example; only its entry can have moved.
    start = np.full(N, -40.0)
    start[13] = 1.0
    weights = make_table(start)
    learner = make_learner(weights, hs.estimators.HPOSGLD(0, 3))
    layer = learner.model.layers[-1]
    before = layer.kernel.numpy()
    data = make_data() if way == "arrays" else (way(),)
    arguments = {"batch_size": 8} if way in ("arrays", as_examples) else {}
    fit(learner, *data, outer_batch_size=8, **arguments)
    step = (layer.kernel.numpy() - before)[:, 0]
    x, _ = make_data()
    cosine = x[13] @ step / np.linalg.norm(x[13]) / np.linalg.norm(step)
    assert abs(cosine) == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_array_equal(
        np.flatnonzero(weights.table.numpy() != start.astype("float32")), [13]
    )


def spread(array, axes):
    """The same rows at each place of a sequence or an image."""
    shape = (len(array), *axes, array.shape[-1])
    return np.broadcast_to(
        array.reshape(len(array), *(1,) * len(axes), -1), shape
    ).copy()


@pytest.mark.parametrize("axes", [(3,), (2, 3)], ids=["sequence", "image"])
def test_an_example_of_several_losses_has_one_weight_for_all_of_them(axes):
    # With the same row at each place the losses are those of one place.
    def run(axes):
        keras.utils.set_random_seed(2)
        inputs = keras.Input((*axes, 3))
        outputs = {"all": keras.layers.Dense(1)(inputs)}
        if axes:  # beside it an output with one loss for each example
            first = inputs[(slice(None), *(0,) * len(axes))]
            outputs["one"] = keras.layers.Rescaling(0.0)(first[:, :1])
        weights = make_table()
        learner = hs.BilevelModel(
            keras.Model(inputs, outputs), example_weights=weights, seed=1
        )
        learner.compile(
            hs.SGLD(0.1),
            loss=dict.fromkeys(outputs, "mse"),
            hypergradient=hs.estimators.RMD(2),
            hyper_optimizer=keras.optimizers.SGD(1.0),
        )

        def data(n, seed):
            x, y = make_data(n, seed)
            targets = {"all": spread(y, axes), "one": np.zeros((n, 1))}
            return spread(x, axes), {name: targets[name] for name in outputs}

        fit(learner, *data(N, 0), outer_data=data(8, 1))
        table, x = weights.table.numpy(), spread(make_data()[0], axes)
        targets = data(N, 0)[1]
        refit(learner, x, targets, epochs=2)
        arrays = [w.numpy() for w in learner.trainable_variables]
        numbered = tf.data.Dataset.from_tensor_slices(
            (x, targets, np.arange(N))
        )
        by_index = refit(learner, numbered.batch(8), epochs=2)
        return [table, *arrays, *by_index]

    found, expected = run(axes), run(())
    assert np.abs(expected[0] - make_table().table).max() > 1e-4
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_data_that_do_not_fit_are_refused():
    x, y = make_data()
    with pytest.raises(ValueError, match="24 weights and 20 examples"):
        fit(make_learner(make_table()), x[:20], y[:20])
    with pytest.raises(ValueError, match="`sample_weight`.*exclude"):
        fit(make_learner(make_table()), sample_weight=np.ones(N))
    without = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    floats = tf.data.Dataset.from_tensor_slices((x, y, np.ones(N))).batch(8)
    for dataset in (without, floats):
        with pytest.raises(ValueError, match="indices integers"):
            fit(make_learner(make_table()), dataset)
    for arguments, message in (
        ((0,), "num_examples"),
        ((2.5,), "num_examples"),
        ((None,), "num_examples"),
        ((float("inf"),), "num_examples"),
        ((3, None), "initial_value"),
        ((3, "0.5"), "initial_value"),
        ((3, [0.5, 0.5, 0.5]), "initial_value"),
        ((3, 0.5, None), "max_value"),
        ((3, 0.0), "initial_value"),
        ((3, 1.0), "initial_value"),
        ((3, 0.5, np.inf), "max_value"),
    ):
        with pytest.raises(ValueError, match=f"`{message}`"):
            hs.ExampleWeights(*arguments)


def by_file(learner, folder):
    learner.save(folder / "learner.keras")
    return keras.models.load_model(folder / "learner.keras")


def by_weights(learner, folder):
    learner.save_weights(folder / "learner.weights.h5")
    other = make_learner(make_table())
    fit(other)
    other.load_weights(folder / "learner.weights.h5")
    return other


@pytest.mark.parametrize(
    "way", [by_file, pytest.param(by_weights, marks=pytest.mark.slow)]
)
def test_training_goes_on_from_what_was_saved(tmp_path, way):
    learner = make_learner(make_table())
    fit(learner)
    other = way(learner, tmp_path)
    expected = learner.example_weights.numpy()
    np.testing.assert_array_equal(other.example_weights.numpy(), expected)
    assert other.example_weights.max_value == 2.0
    fit(learner)
    fit(other)
    assert np.abs(learner.example_weights.numpy() - expected).max() > 1e-3
    np.testing.assert_array_equal(
        other.example_weights.numpy(), learner.example_weights.numpy()
    )


def test_evaluation_does_without_the_table_and_refit_takes_other_weights():
    x, y = make_data()
    learner = make_learner(make_table())
    fit(learner)
    error = np.mean((learner.predict(x, verbose=0) - y) ** 2)
    for _ in range(2):
        logs = learner.evaluate(x, y, verbose=0, return_dict=True)
        np.testing.assert_allclose(logs["loss"], error, rtol=1e-5)
        np.testing.assert_allclose(logs["outer_loss"], error, rtol=1e-5)
        learner.example_weights.table.assign_add(np.ones(N))
    # What is passed counts: with these weights the first half alone.
    learned = learner.example_weights.numpy()
    doubled = np.vstack([y[: N // 2], y[N // 2 :] + 100.0])
    learner.refit(
        x,
        doubled,
        sample_weight=np.repeat([1.0, 0.0], N // 2),
        optimizer=keras.optimizers.SGD(0.2),
        batch_size=8,
        epochs=60,
        verbose=0,
    )
    np.testing.assert_allclose(learner.predict(x, verbose=0), y, atol=0.05)
    np.testing.assert_array_equal(learner.example_weights.numpy(), learned)


def refit(learner, x, y=None, **arguments):
    """The weights after a refit on few large batches, in order."""
    keras.utils.set_random_seed(4)
    if y is not None:
        arguments |= {"batch_size": 8, "shuffle": False}
    learner.refit(
        x, y, optimizer=keras.optimizers.SGD(0.1), verbose=0, **arguments
    )
    return [weight.numpy() for weight in learner.trainable_variables]


def test_refit_takes_the_learned_weights_of_the_training_data():
    x, y = make_data()
    learner = make_learner(make_table())
    learned = learner.example_weights.numpy()
    own = refit(learner, x, y)
    expected = refit(learner, x, y, sample_weight=learned)
    ones = refit(learner, x, y, sample_weight=np.ones(N))
    assert np.abs(own[0] - ones[0]).max() > 1e-3
    indices = np.arange(N)
    numbered = tf.data.Dataset.from_tensor_slices((x, y, indices)).batch(8)
    by_index = refit(learner, numbered)
    weighted = tf.data.Dataset.from_tensor_slices((x, y, learned)).batch(8)
    by_weight = refit(learner, weighted)
    pandas = pytest.importorskip("pandas", reason="it is what is tested")
    of_pandas = refit(learner, pandas.DataFrame(x), y)
    for found in (own, by_index, by_weight, of_pandas):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda x, y: (np.vstack([x, x]), np.vstack([y, y])),
            "Received: 24 weights and 48 examples.*numpy",
        ),
        (
            lambda x, y: (
                tf.data.Dataset.from_tensor_slices((x, y)).batch(8),
                None,
            ),
            r"must be \(inputs, targets, indices\)",
        ),
        (
            lambda x, y: (iter([(x, y)]), None),
            "must be arrays or a `tf.data.Dataset`. Received: a list_iterator",
        ),
    ],
    ids=["longer", "dataset", "generator"],
)
def test_refit_asks_for_weights_where_it_does_not_know_them(make, message):
    learner = make_learner(make_table())
    before = [weight.numpy() for weight in learner.trainable_variables]
    with pytest.raises(ValueError, match=message):
        learner.refit(*make(*make_data()), verbose=0)
    for a, b in zip(learner.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_weighted_metrics_follow_the_weights():
    # One chain at a learning rate that moves nothing.
    weights = make_table()
    w, (x, y) = weights.numpy(), make_data()
    learner = make_learner(
        weights,
        optimizer=hs.SGLD(1e-12),
        hyper_optimizer=keras.optimizers.SGD(1e-12),
        metrics=["mae"],
        weighted_metrics=["mae"],
    )
    logs = fit(learner, batch_size=N, outer_batch_size=8).history
    error = np.abs(learner.predict(x, verbose=0) - y)[:, 0]
    np.testing.assert_allclose(logs["mae"][0], error.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        logs["weighted_mae"][0], np.average(error, weights=w), rtol=1e-5
    )


def test_wrong_labels_get_small_weights_and_all_are_hyperparameters():
    x, y = make_data(20_000)
    is_bad = np.random.default_rng(4).random(20_000) < 0.4
    y = np.where(is_bad[:, None], -y, y)
    weights = hs.ExampleWeights(20_000)
    learner = make_learner(
        weights,
        hs.estimators.AdjointSGLD(5, 5),
        hyper_optimizer=keras.optimizers.Adam(0.2),
    )
    assert sum(np.size(v) for v in learner.hyperparameters) == 20_000
    fit(learner, x, y, batch_size=2000, epochs=25)
    learned = weights.numpy()
    assert learned[is_bad].mean() < 0.35 < 0.65 < learned[~is_bad].mean()
    (values,) = learner.hyperparameter_values().values()
    np.testing.assert_array_equal(values, learned)


def test_adjoint_of_large_tensors_survives_a_second_call():
    # TensorFlow turned a sum of three tensors in the loop into a temporary
    # variable, once it took the graph for one that fills the memory; the
    # second call then failed with "already exists".
    def objective(hyperparameters, params, batch):
        error = tf.matmul(batch, params) - 1.0
        return tf.reduce_mean(tf.exp(hyperparameters) * error**2)

    sampler = hs.SGLD(1e-4)
    batches = tf.zeros([20, 2000, 800])

    @tf.function
    def estimate(params):
        return hs.hypergradient(
            hs.BilevelProblem(objective, objective),
            tf.zeros([2000, 1]),
            params,
            estimator=hs.estimators.AdjointSGLD(10, 10),
            sampler=sampler,
            inner_batches=batches + params[0, 0],
            outer_batches=batches + params[0, 0],
        ).hypergradient

    for _ in range(2):
        assert np.all(np.isfinite(estimate(tf.ones([800, 10]))))
