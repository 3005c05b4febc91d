"""Samples of the weights that a chain has passed, and predictions by them."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from test_evidence_fit import fit
from test_evidence_fit import make_data
from test_evidence_fit import make_learner
from test_evidence_fit import penalty

import keras_hposgld as hs
from keras_hposgld.training.placement import placement_of
from keras_hposgld.training.posterior import PosteriorSamples

L = keras.layers
X = np.random.default_rng(1).normal(size=(7, 4)).astype("float32")
CLASSES = np.arange(7) % 3
GRAPH = dict(jit_compile=False)
MODES = {
    "graph": GRAPH,
    "eager": dict(run_eagerly=True),
    "xla": dict(jit_compile=True),
    "initial": dict(start="initial"),
}


def compiled(model, loss, number=4, **arguments):
    """A learner of a model, whose samples are numbers of their own."""
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(
        hs.SGLD(0.02, seed=1),
        loss=loss,
        hypergradient=hs.estimators.Evidence(1, 4),
        posterior_samples=number,
        **arguments,
    )
    fill(learner)
    return learner


def fill(learner):
    rng = np.random.default_rng(2)
    for value in learner.posterior.values:
        value.assign(rng.normal(size=value.shape))
    number = learner.posterior.capacity
    learner.posterior.count.assign(2 * number)
    learner.posterior.written.assign(2 * number + 1)  # the oldest is in slot 1


def classifier(units=3, dtype=None):
    dense = L.Dense(units, kernel_regularizer=penalty(), dtype=dtype)
    return keras.Sequential([keras.Input((4,)), dense])


def by_hand(learner, x=X):
    """The predictions by each sample, oldest first, with weights assigned."""
    model, values = learner.model, learner.posterior.values
    before = [w.numpy() for w in model.trainable_variables]
    predictions = []
    number, written = values[0].shape[0], int(learner.posterior.written)
    for slot in (np.arange(number) + written) % number:
        for weight, value in zip(
            model.trainable_variables, values, strict=True
        ):
            weight.assign(value.numpy()[slot])
        predictions.append(model(x, training=False))
    for weight, value in zip(model.trainable_variables, before, strict=True):
        weight.assign(value)
    return keras.tree.map_structure(lambda *ys: np.stack(ys), *predictions)


def softmax(y):
    return keras.ops.convert_to_numpy(keras.ops.softmax(y))


def sigmoid(y):
    return keras.ops.convert_to_numpy(keras.ops.sigmoid(y))


# Which samples are kept.


def is_written(t, number):
    """The rule as it is said: t is a multiple of s(t)."""
    spacing = 1
    while spacing < t / (2 * number):
        spacing *= 2
    return t % spacing == 0


@pytest.mark.parametrize("number", [1, 2, 3, 8, 13])
def test_ring_holds_the_second_half_at_any_time(number):
    weight = keras.Variable(0.0)
    ring = PosteriorSamples()
    ring.number = number
    ring.build_for_samples([weight], ["weight"])

    @tf.function
    def step(t):
        weight.assign(t)
        ring.follow([weight], tf.constant(0.0), placement_of(None))
        return ring.num_used()

    for t in range(1, 40 * number):
        used = int(step(tf.constant(float(t))))
        newest = int(ring.written)
        slots = np.arange(newest - used, newest) % number
        kept = ring.values[0].numpy()[slots].tolist()
        half = [u for u in range(1, t + 1) if is_written(u, number)]
        half = [u for u in half if u > t / 2]
        assert kept == half, t
        assert used == (number if t >= 2 * number else (t + 1) // 2)
        gaps = np.diff([t // 2, *kept])
        assert gaps.max() <= 2 * gaps[1:].min(initial=gaps.max())


class Passed(keras.callbacks.Callback):
    """The weights at the end of each outer iteration."""

    def on_train_begin(self, logs=None):
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        if len(self.weights) < int(self.model.outer_iterations):
            (weight,) = self.model.trainable_variables
            self.weights.append(weight.numpy())


@pytest.mark.parametrize("mode", MODES)
def test_fit_keeps_the_ends_of_chains(mode):
    learner, passed = make_learner(posterior_samples=3, **MODES[mode]), Passed()
    fit(learner, steps_per_epoch=20, callbacks=[passed])  # 8 chains of 5
    # Those of 8, 6 and, before 6 = 2 K, of 5.
    assert int(learner.posterior.count) == 8
    expected = [X @ passed.weights[t - 1] for t in (5, 6, 8)]
    predictions = learner.posterior_predict(X)
    np.testing.assert_allclose(predictions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        learner.predict(X, verbose=0), np.mean(expected, axis=0), rtol=1e-5
    )


def test_only_new_samples_are_used_early():
    learner, passed = make_learner(posterior_samples=32), Passed()
    fit(learner, steps_per_epoch=25, epochs=1, callbacks=[passed])
    expected = [X @ weights for weights in passed.weights[2:]]
    assert len(passed.weights) == 5
    np.testing.assert_allclose(
        learner.posterior_predict(X), expected, rtol=1e-5, atol=1e-6
    )


def test_what_is_not_finite_never_gets_in():
    learner = make_learner(posterior_samples=2, max_skipped_updates=100)
    x, y = make_data()
    fit(learner, (x, np.full_like(y, np.nan)))
    assert int(learner.outer_iterations) == 4
    assert int(learner.posterior.count) == int(learner.posterior.written) == 0
    assert_equal([learner.predict(X, verbose=0)], [learner(X).numpy()])


# What is averaged.

LOSSES = {
    "numbers": (keras.losses.SparseCategoricalCrossentropy(), None),
    "sparse": (keras.losses.SparseCategoricalCrossentropy(True), softmax),
    "categorical": (keras.losses.CategoricalCrossentropy(True), softmax),
    "binary": (keras.losses.BinaryCrossentropy(True), sigmoid),
}


@pytest.mark.parametrize("case", LOSSES)
def test_predictions_are_means_of_numbers_or_probabilities(case):
    loss, link = LOSSES[case]
    learner = compiled(classifier(), loss)
    each, mean = by_hand(learner), learner.predict(X, verbose=0)
    link = link or (lambda y: y)
    np.testing.assert_allclose(link(mean), link(each).mean(axis=0), rtol=1e-5)
    assert np.abs(mean - each.mean(axis=0)).max() > 0.05 or case == "numbers"
    np.testing.assert_array_equal(learner.predict_on_batch(X), mean)
    # Called, it is the model with its weights as they are.
    assert_equal([learner(X).numpy()], [learner.model(X).numpy()])
    again, deviation = learner.predict(X, verbose=0, return_std=True)
    np.testing.assert_allclose(again, mean, rtol=1e-5)
    np.testing.assert_allclose(
        deviation, link(each).std(axis=0), rtol=1e-4, atol=1e-6
    )


def test_batches_are_put_together():
    layers = [keras.Input((4,)), *classifier().layers, L.Softmax()]
    model = keras.Sequential(layers)
    learner = compiled(model, keras.losses.CategoricalCrossentropy())
    each, arguments = by_hand(learner), dict(batch_size=4, verbose=0)
    for mean in (
        learner.predict(X, **arguments),
        learner.predict(X, **arguments, return_std=True)[0],
        # And this one is still without the deviation.
        learner.predict(X, **arguments),
    ):
        np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        learner.posterior_predict(X, batch_size=4), each, rtol=1e-5, atol=1e-6
    )
    targets = np.eye(3)[CLASSES]  # and judged are the averages again
    expected = learner.loss(targets, each.mean(axis=0))
    found = learner.evaluate(X, targets, **arguments) - sum(learner.losses)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_logits_of_probabilities_that_are_too_small_stay_finite():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    learner = compiled(classifier(), loss, number=2)
    for value in learner.posterior.values:
        value.assign(np.sign(value) * 1e3)
    mean = learner.predict(X, verbose=0)
    assert np.isfinite(mean).all()
    assert mean.min() < -200  # exp(-200) is zero in float32


@pytest.mark.parametrize("container", [list, dict])
def test_each_of_several_outputs_is_averaged_by_its_own_loss(container):
    inputs = keras.Input((4,))
    dense = [
        L.Dense(3, kernel_regularizer=penalty(), name=name)
        for name in ("b", "a", "c")
    ]
    b, a, c = (layer(inputs) for layer in dense)
    outputs = {"b": b, "a": a, "c": c} if container is dict else [b, a, c]
    loss = {
        "a": keras.losses.CategoricalCrossentropy(from_logits=True),
        "b": keras.losses.BinaryCrossentropy(from_logits=True),
        "c": hs.losses.LearnableGaussianLoss(),
    }
    learner = compiled(keras.Model(inputs, outputs), loss)
    each, mean = by_hand(learner), learner.predict(X, verbose=0)
    exported = learner.export().predict(X, verbose=0)
    for names in (each, mean, exported):
        assert type(names) is type(each)
    if container is list:
        each, mean, exported = (
            dict(zip("bac", y, strict=True)) for y in (each, mean, exported)
        )
    links = {"a": softmax, "b": sigmoid, "c": lambda y: y}
    for name, link in links.items():
        np.testing.assert_allclose(
            link(mean[name]), link(each[name]).mean(axis=0), rtol=1e-5
        )
        np.testing.assert_allclose(
            exported[name], mean[name], rtol=1e-4, atol=1e-5
        )


def test_evaluate_judges_averaged_predictions():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = classifier()
    # What layers add is that of the weights as they are.
    model.layers[0].activity_regularizer = keras.regularizers.L2(0.1)
    learner = compiled(model, loss, metrics=["accuracy"])
    mean = softmax(by_hand(learner)).mean(axis=0)
    model(X)
    expected = -np.log(mean[np.arange(7), CLASSES]).mean() + sum(model.losses)
    accuracy = np.mean(mean.argmax(axis=1) == CLASSES)
    logs = learner.evaluate(X, CLASSES, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["accuracy"], accuracy, rtol=1e-5)
    on_batch = learner.test_on_batch(X, CLASSES, return_dict=True)
    np.testing.assert_allclose(on_batch["loss"], expected, rtol=1e-5)


def test_masked_steps_are_left_out_of_the_loss():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            L.Embedding(4, 4, mask_zero=True),
            L.Dense(3, kernel_regularizer=penalty()),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x = np.array([[1, 2, 3, 0, 0], [2, 1, 0, 0, 0]])
    y = np.array([[0, 1, 2, 0, 1], [1, 2, 0, 1, 2]])
    learner = compiled(model, loss)
    mean = softmax(by_hand(learner, x)).mean(axis=0)
    losses = -np.log(np.take_along_axis(mean, y[..., None], -1))[..., 0]
    expected = losses[x > 0].mean() + sum(model.losses)
    found = learner.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_half_precision_is_averaged_in_single():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # In half precision so many would add up to an error of a hundredth.
    learner = compiled(classifier(dtype="mixed_float16"), loss, 200)
    assert {value.dtype for value in learner.posterior.values} == {"float32"}
    mean = learner.predict(X, verbose=0)
    assert mean.dtype == np.float16
    expected = softmax(by_hand(learner).astype("float32")).mean(axis=0)
    np.testing.assert_allclose(softmax(mean), expected, rtol=3e-3)


def test_graph_is_traced_once_and_as_small_for_many_samples():
    sizes = []
    for number in (2, 20):
        learner = compiled(classifier(), LOSSES["sparse"][0], number, **GRAPH)
        learner.reset_posterior()
        learner.predict(X, verbose=0)  # by the weights as they are
        for count in (1, 2 * number):
            learner.posterior.count.assign(count)
            learner.posterior.written.assign(count)
            assert learner.num_samples_used() == (count + 1) // 2
            learner.predict(X, verbose=0)
        function = learner.predict_function
        assert function.experimental_get_tracing_count() == 1
        (concrete,) = function._list_all_concrete_functions()
        definition = concrete.graph.as_graph_def()
        sizes.append(
            len(definition.node)
            + sum(len(f.node_def) for f in definition.library.function)
        )
    assert sizes[0] == sizes[1]


# How long they are kept.


def everything(learner):
    kept = [v.numpy() for v in learner.posterior.weights]
    return [*kept, learner.predict(X, verbose=0)]


def by_file(learner, folder):
    learner.save(folder / "learner.keras")
    return keras.models.load_model(folder / "learner.keras")


def by_weights(learner, folder):
    learner.save_weights(folder / "learner.weights.h5")
    other = make_learner(posterior_samples=3)
    fit(other, epochs=1)
    other.load_weights(folder / "learner.weights.h5")
    other.optimizer.iterations.assign(learner.optimizer.iterations)
    for own, value in zip(
        other.hyper_optimizer.variables,
        learner.hyper_optimizer.variables,
        strict=True,
    ):
        own.assign(value)
    return other


def by_checkpoint(learner, folder):
    path = tf.train.Checkpoint(learner=learner).save(str(folder / "state"))
    other = make_learner(posterior_samples=3)
    status = tf.train.Checkpoint(learner=other).restore(path)
    status.assert_existing_objects_matched()
    return other


def compile_again(learner):
    learner.compile(
        hs.SGLD(0.2, integrator="exponential"),
        hs.losses.LearnableGaussianLoss(),
        hypergradient="evidence",
        posterior_samples=3,
    )


@pytest.mark.parametrize(
    "way",
    [
        by_file,
        by_checkpoint,
        pytest.param(by_weights, marks=pytest.mark.slow),
    ],
)
def test_resumed_training_keeps_the_samples_of_an_unbroken_one(tmp_path, way):
    whole = make_learner(posterior_samples=3)
    fit(whole, epochs=4)
    halves = make_learner(posterior_samples=3)
    fit(halves, epochs=3)
    resumed = way(halves, tmp_path)
    assert_equal(everything(resumed), everything(halves))
    for learner in (halves, resumed):
        fit(learner, epochs=1)
        assert_equal(everything(learner), everything(whole))


def test_samples_of_a_file_are_there_before_compile_and_after(tmp_path):
    learner = make_learner(posterior_samples=3)
    fit(learner)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras", compile=False)
    assert_equal(everything(loaded), everything(learner))
    compile_again(loaded)
    assert_equal(everything(loaded), everything(learner))


def test_file_with_another_number_of_samples_is_left_out(tmp_path):
    learner = make_learner(posterior_samples=3)
    fit(learner)
    learner.save_weights(tmp_path / "learner.weights.h5")
    other = make_learner(posterior_samples=2)
    fit(other)
    with pytest.warns(UserWarning, match="Received: 3 samples, and"):
        other.load_weights(tmp_path / "learner.weights.h5")
    assert other.num_samples_used() == 0
    assert_equal([other.predict(X, verbose=0)], [learner(X).numpy()])


FORGETTING = {
    "reset": lambda learner: learner.reset_posterior(),
    "compile": compile_again,
    "refit": lambda learner: learner.refit(*make_data(), verbose=0),
}


@pytest.mark.parametrize("way", FORGETTING)
def test_samples_are_forgotten(way):
    learner = make_learner(posterior_samples=3)
    fit(learner)
    assert learner.num_samples_used() == 2
    FORGETTING[way](learner)
    assert learner.num_samples_used() == 0
    assert_equal([learner.predict(X, verbose=0)], [learner(X).numpy()])
    with pytest.raises(ValueError, match="`return_std` needs samples"):
        learner.predict(X, verbose=0, return_std=True)
    with pytest.raises(ValueError, match="`posterior_predict` needs samples"):
        learner.posterior_predict(X)


def test_replicas_keep_the_samples_of_one_device(mirrored, float64):
    learner = make_learner(posterior_samples=3)
    with mirrored.scope():
        same = make_learner(posterior_samples=3)
    x, y = make_data()
    found = []
    for one in (learner, same):
        fit(one, steps_per_epoch=20)
        arguments = dict(batch_size=20, verbose=0)
        mean, deviation = one.predict(x, return_std=True, **arguments)
        loss = one.evaluate(x, y, **arguments)
        each = one.posterior_predict(x, batch_size=20)
        found.append([one.predict(x, **arguments), mean, deviation, each, loss])
    for value in same.posterior.values:
        first, second = value.value.values
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    # Means over halves of batches round otherwise.
    assert_equal(*found, rtol=1e-8)


# Plain models.


def test_exported_average_is_a_plain_model_and_predicts_the_same(tmp_path):
    adapted = L.Normalization()
    adapted.adapt(3 + 2 * X)
    learner = make_learner(adapted, L.Dense(3, "tanh"), posterior_samples=3)
    fit(learner, steps_per_epoch=20)
    expected = learner.predict(X, verbose=0)
    exported = learner.export(posterior="average")
    assert "keras_hposgld" not in json.dumps(exported.get_config())
    assert len(exported.losses) == 0
    exported.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    learner.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    for model in (exported, learner.export(), loaded, served.serve):
        np.testing.assert_allclose(model(X), expected, rtol=1e-5)


def test_exported_samples_are_those_of_predictions():
    learner = make_learner(posterior_samples=3)
    fit(learner, steps_per_epoch=20)
    present = learner(X).numpy()
    for number, prediction in enumerate(learner.posterior_predict(X)):
        for index in (number, number - 3):
            exported = learner.export(posterior=index)
            np.testing.assert_allclose(exported(X), prediction, rtol=1e-5)
            assert_equal([learner(X).numpy()], [present])
    assert_equal([learner.export(posterior=None)(X).numpy()], [present])
    for unknown in (3, -4, "last", 0.5):
        with pytest.raises(ValueError, match="Received: posterior="):
            learner.export(posterior=unknown)
    learner.reset_posterior()
    assert_equal([learner.export()(X).numpy()], [present])
    for asked in ("average", 0):
        with pytest.raises(ValueError, match="needs samples of the weights"):
            learner.export(posterior=asked)


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = L.Dense(3, kernel_regularizer=penalty())

    def call(self, inputs):
        return self.dense(inputs)


def test_average_of_a_model_without_known_inputs_cannot_be_exported():
    model = Own()
    model(X)
    learner = compiled(model, keras.losses.CategoricalCrossentropy(True))
    mean = softmax(by_hand(learner)).mean(axis=0)
    np.testing.assert_allclose(
        softmax(learner.predict(X, verbose=0)), mean, rtol=1e-5
    )
    with pytest.raises(ValueError, match="needs a Sequential or Functional"):
        learner.export()


# What is refused, and what it costs.


def test_number_is_checked():
    assert make_learner().posterior.number == 32
    none = make_learner(posterior_samples=0)
    fit(none)
    assert none.posterior.values == []
    assert_equal([none.predict(X, verbose=0)], [none(X).numpy()])
    plain = make_learner(hypergradient="hpo_sgld")
    assert plain.posterior.number == 0
    for wrong in (-1, 1.5, "all"):
        with pytest.raises(ValueError, match="`posterior_samples` must be"):
            make_learner(posterior_samples=wrong)
    with pytest.raises(ValueError, match="that needs outer data.*samples=8"):
        make_learner(hypergradient="hpo_sgld", posterior_samples=8)


class OwnStep(keras.Sequential):
    def predict_step(self, data):
        return tf.argmax(super().predict_step(data), axis=-1)


def test_own_predict_step_is_refused_unless_nothing_is_kept():
    dense = L.Dense(1, kernel_regularizer=penalty())
    learner = hs.BilevelModel(OwnStep([keras.Input((4,)), dense]))
    loss = hs.losses.LearnableGaussianLoss()
    with pytest.raises(ValueError, match="a `predict_step` of its own"):
        learner.compile(hs.SGLD(0.02), loss, hypergradient="evidence")
    learner.compile(
        hs.SGLD(0.02), loss, hypergradient="evidence", posterior_samples=0
    )
    assert learner.predict(X, verbose=0).dtype == np.int64


def test_integers_are_not_averaged():
    inputs = keras.Input((4,))
    y = L.Dense(3, kernel_regularizer=penalty())(inputs)
    model = keras.Model(inputs, [y, keras.ops.argmax(y, axis=-1)])
    loss = [keras.losses.CategoricalCrossentropy(from_logits=True), None]
    learner = compiled(model, loss)
    with pytest.raises(ValueError, match="Predictions must be floats"):
        learner.predict(X, verbose=0)


def test_estimate_of_memory_counts_the_samples():
    few, many = (
        make_learner(posterior_samples=number).memory_estimate()
        for number in (0, 100)
    )
    assert many.samples == 100 * 4 * 4  # four numbers of four bytes
    assert many.weights - few.weights == many.total - few.total == many.samples
    assert "posterior samples" in str(many)
    assert "posterior samples" not in str(few)
