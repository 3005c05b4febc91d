"""Learned losses against closed forms, in and out of a learner."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.training import keras_problem

JUDGE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
START = {
    "taylor": hs.losses.LearnableTaylorLoss,
    "smoothing": lambda **a: hs.losses.LearnableLabelSmoothing(
        0.2, max_value=0.8, **a
    ),
    "class_weights": lambda **a: hs.losses.LearnableClassWeights(
        3, initial_value=[0.5, 1.0, 3.0], max_value=5.0, **a
    ),
    "noise_rate": lambda **a: hs.losses.NoisyLabelCrossentropy(
        3, initial_value=0.2, max_value=0.5, **a
    ),
    "noise_matrix": lambda **a: hs.losses.NoisyLabelCrossentropy(
        3, "matrix", 0.3, **a
    ),
}
each_loss = pytest.mark.parametrize("kind", START)


def make_loss(kind, **arguments):
    """A loss whose numbers are not those that it starts with."""
    loss = START[kind](**arguments)
    change = np.linspace(-0.4, 0.6, loss.variable.shape.num_elements())
    loss.variable.assign_add(change.reshape(loss.variable.shape))
    return loss


def make_data(n=24, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    return x, x[:, :3].argmax(axis=1)


def make_network():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(5, "tanh"),
            keras.layers.Dense(3),
        ]
    )


def make_learner(loss, estimator="hpo_sgld", **arguments):
    learner = hs.BilevelModel(make_network(), seed=1)
    defaults = dict(
        optimizer=hs.SGLD(0.1, seed=3),
        outer_loss=JUDGE,
        hypergradient=hs.estimators.get(estimator),
    )
    learner.compile(loss=loss, **(defaults | arguments))
    return learner


def fit(learner, **arguments):
    defaults = dict(
        outer_data=make_data(12, seed=1), batch_size=4, epochs=2, verbose=0
    )
    return learner.fit(*make_data(), **(defaults | arguments))


def random_predictions(rng, n=6, classes=3):
    y = rng.dirichlet(np.ones(classes), size=n)
    return np.eye(classes)[rng.integers(0, classes, n)], y


def test_taylor_loss_starts_as_the_expansion_of_the_cross_entropy(float64, rng):
    x, y = random_predictions(rng)
    # x log y around x = 0, y = 1/2: third order in all, so x times second.
    z = 2 * (y - 0.5)
    expansion = x * (z - z**2 / 2)
    np.testing.assert_allclose(
        hs.losses.LearnableTaylorLoss(reduction="none")(x, y),
        -expansion.mean(axis=1),
        rtol=1e-12,
        atol=1e-14,
    )


def test_taylor_loss_is_its_polynomial(float64, rng):
    x, y = random_predictions(rng)
    loss = hs.losses.LearnableTaylorLoss(reduction="none")
    values = rng.normal(size=8)
    loss.variable.assign(values)
    a, b, *coefficients = values
    expected = np.zeros_like(x)
    for p, q in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)]:
        c = coefficients.pop(0) / math.factorial(p) / math.factorial(q)
        expected += c * (x - a) ** p * (y - b) ** q
    np.testing.assert_allclose(loss(x, y), -expected.mean(axis=1), rtol=1e-11)


@pytest.mark.parametrize("smoothing", [0.05, 0.6])
def test_label_smoothing_is_that_of_keras(float64, rng, smoothing):
    x, y = random_predictions(rng)
    loss = hs.losses.LearnableLabelSmoothing(smoothing, max_value=0.7)
    expected = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    np.testing.assert_allclose(loss(x, y), expected(x, y), rtol=1e-9)


def test_class_weights_are_those_of_keras(float64, rng):
    x, y = random_predictions(rng)
    weights = np.array([0.5, 1.5, 4.0])
    loss = hs.losses.LearnableClassWeights(3, weights, max_value=5.0)
    expected = keras.losses.CategoricalCrossentropy()(
        x, y, sample_weight=x @ weights
    )
    np.testing.assert_allclose(loss(x, y), expected, rtol=1e-9)


@each_loss
@pytest.mark.parametrize("label", [-1, 3])
def test_label_that_is_no_class_is_not_passed_over(kind, label, rng, run):
    _, y_pred = random_predictions(rng)
    labels = np.array([0, 1, 2, label, 0, 1])
    loss = make_loss(kind, reduction="none")
    values = run(lambda: loss(labels, y_pred)).numpy()
    assert np.isnan(values[3])
    assert np.isfinite(np.delete(values, 3)).all()


@each_loss
def test_any_form_of_targets_and_predictions_gives_the_same(kind, rng):
    one_hot, y = random_predictions(rng)
    classes = one_hot.argmax(axis=1)
    y, logits = y.astype("float32"), np.log(y).astype("float32") + 0.7
    loss, of_logits = make_loss(kind), make_loss(kind, from_logits=True)
    expected = loss(one_hot, y)
    for targets in (classes, classes[:, None], one_hot, classes.tolist()):
        np.testing.assert_allclose(loss(targets, y), expected, rtol=1e-6)
        np.testing.assert_allclose(
            loss(targets, y.tolist()), expected, rtol=1e-6
        )
        np.testing.assert_allclose(
            of_logits(targets, logits), expected, rtol=1e-5
        )


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind == "taylor" else [])
        for kind in START
    ],
)
def test_hypergradient_is_the_difference_quotient(float64, rng, kind):
    # Reverse mode through three inner steps, against moving the loss a little
    # in a random direction and taking the steps again.
    judge = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    loss = make_loss(kind, from_logits=True)
    learner = make_learner(loss, outer_loss=judge)
    data, outer = make_data(), make_data(12, seed=1)
    keras_problem.build_on(learner, data)
    problem = keras_problem.KerasProblem(
        learner, learner.hyperparameters, [], judge, tracks_metrics=False
    )
    (start,) = keras_problem.tensors(problem.hyperparameters)
    weights, sampler = keras_problem.tensors(problem.weights), hs.SGLD(0.5)

    @tf.function
    def estimate(value):
        return hs.hypergradient(
            hs.BilevelProblem(
                lambda h, p, batch: problem.inner(h, p, batch, ([], []))[0],
                lambda h, p, batch: problem.outer(h, p, batch, ([], [])),
            ),
            [value],
            weights,
            estimator=hs.estimators.RMD(num_steps=3),
            sampler=sampler,
            inner_batches=tuple(np.stack([part] * 3) for part in data),
            outer_batches=tuple(np.stack([part] * 3) for part in outer),
        )

    (hypergradient,) = estimate(start).hypergradient
    direction = rng.normal(size=start.shape)
    quotient = (
        estimate(start + 1e-5 * direction).outer_loss
        - estimate(start - 1e-5 * direction).outer_loss
    ) / 2e-5
    assert abs(quotient) > 1e-4
    np.testing.assert_allclose(
        np.sum(hypergradient * direction), quotient, rtol=1e-6
    )


@each_loss
def test_first_outer_iteration_is_one_step_against_the_derivative(kind):
    # One inner step w1 = w0 - a dL/dw: HPO-SGLD with B = 0, M = 1 is exact, so
    # the loss moves by -rate times -a v . d2L/dw dlambda, v = df/dw(w1).
    loss = make_loss(kind, from_logits=True)
    learner = make_learner(
        loss,
        hs.estimators.HPOSGLD(0, 1),
        hyper_optimizer=keras.optimizers.SGD(1.0),
    )
    (x, y), (x_out, y_out) = make_data(4), make_data(4, seed=1)
    before = loss.variable.numpy()
    weights = learner.trainable_variables
    with tf.GradientTape() as outer_tape:
        outer_tape.watch(loss.variable.value)
        with tf.GradientTape() as tape:
            value = loss(y, learner(x))
        gradients = tape.gradient(value, weights)
        moved = [w - 0.1 * g for w, g in zip(weights, gradients, strict=True)]
        (k1, b1), (k2, b2) = moved[:2], moved[2:]
        logits = tf.tanh(x_out @ k1 + b1) @ k2 + b2
        judged = JUDGE(y_out, logits)
    expected = before - outer_tape.gradient(judged, loss.variable.value)
    learner.fit(
        x, y, outer_data=(x_out, y_out), batch_size=4, epochs=1, verbose=0
    )
    assert np.abs(before - expected).max() > 1e-5
    np.testing.assert_allclose(loss.variable, expected, rtol=1e-4, atol=1e-6)


def by_file(learner, kind, folder):
    learner.save(folder / "learner.keras")
    return keras.models.load_model(folder / "learner.keras")


def by_weights(learner, kind, folder):
    learner.save_weights(folder / "learner.weights.h5")
    other = make_learner(START[kind](from_logits=True))
    fit(other, epochs=1)
    other.load_weights(folder / "learner.weights.h5")
    return other


def by_checkpoint(learner, kind, folder):
    path = tf.train.Checkpoint(learner=learner).save(str(folder / "state"))
    other = make_learner(START[kind](from_logits=True))
    fit(other, epochs=1)
    tf.train.Checkpoint(learner=other).restore(path)
    return other


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        pytest.param(by_file, "taylor", marks=pytest.mark.slow),
        (by_file, "class_weights"),
        pytest.param(by_weights, "taylor", marks=pytest.mark.slow),
        (by_checkpoint, "class_weights"),
    ],
)
def test_training_goes_on_from_what_was_saved(tmp_path, way, kind):
    learner = make_learner(START[kind](from_logits=True))
    fit(learner)
    other = way(learner, kind, tmp_path)
    assert other.loss is not learner.loss
    np.testing.assert_array_equal(other.loss.variable, learner.loss.variable)
    fit(learner)
    fit(other)
    np.testing.assert_array_equal(other.loss.variable, learner.loss.variable)


@each_loss
def test_plain_model_keeps_what_its_loss_has_learned(tmp_path, kind):
    model, (x, y) = make_network(), make_data()
    model.compile("sgd", loss=make_loss(kind, from_logits=True))
    expected = model.evaluate(x, y, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.evaluate(x, y, verbose=0), expected, rtol=1e-6
    )
    assert loaded.loss.from_logits


def test_plain_fit_leaves_the_loss_alone_and_the_callback_learns_it():
    loss = START["taylor"](from_logits=True)
    model, start = make_network(), loss.variable.numpy()
    model.compile("adam", loss=loss)
    model.fit(*make_data(), batch_size=4, verbose=0)
    np.testing.assert_array_equal(loss.variable, start)
    callback = hs.callbacks.LearnHyperparameters(
        make_data(12, seed=1),
        estimator=hs.estimators.HPOSGLD(1, 1),
        every=2,
        batch_size=4,
        outer_loss=JUDGE,
        seed=0,
    )
    model.fit(*make_data(), batch_size=4, callbacks=[callback], verbose=0)
    moved = np.abs(loss.variable - start)
    # Probabilities add up to one, so the term with y alone is a constant.
    assert moved[2] < 1e-3 and np.delete(moved, 2).min() > 1e-3
    assert list(callback.hyperparameter_values()) == [loss.variable.path]


@pytest.mark.slow
def test_compiled_by_xla_it_learns_the_same():
    learned = []
    for arguments in ({"run_eagerly": True}, {"jit_compile": True}):
        loss = START["taylor"](from_logits=True)
        learner = make_learner(loss, hs.estimators.HPOSGLD(1, 2), **arguments)
        fit(learner, epochs=1, steps_per_epoch=2 * 3)
        learned.append(loss.variable.numpy())
    # float32, and Adam divides by the size of the hypergradient.
    np.testing.assert_allclose(*learned, rtol=1e-3, atol=1e-4)


def test_hypergradient_whose_square_is_not_finite_is_skipped():
    # Adam would keep an infinite second moment, and not a number from then on.
    def enormous(y, y_pred):
        return 1e25 * JUDGE(y, y_pred)

    loss = START["taylor"](from_logits=True)
    learner, start = make_learner(loss, outer_loss=enormous), loss.variable + 0
    fit(learner, steps_per_epoch=learner.hypergradient.num_steps)
    assert int(learner.outer_level.guard.skipped_in_a_row) == 2
    np.testing.assert_array_equal(loss.variable, start)


def test_learned_class_weights_find_the_class_whose_labels_lie():
    (x, y), outer = make_data(300), make_data(100, seed=1)
    lying = np.random.default_rng(2).random(300) < 0.6
    y = np.where((y == 0) & lying, 2, y)  # so a 2 is not to be trusted
    loss = hs.losses.LearnableClassWeights(3, from_logits=True, max_value=4.0)
    learner = make_learner(loss)
    learner.fit(x, y, outer_data=outer, batch_size=20, epochs=40, verbose=0)
    weights = loss.constrained().numpy()
    assert weights[2] < 0.75 * weights[0]


def test_what_cannot_work_is_refused():
    loss = START["smoothing"](from_logits=True)
    with pytest.raises(ValueError, match="`outer_loss` must be given"):
        make_learner(loss, outer_loss=None)
    weighted = hs.losses.LearnableClassWeights(4, from_logits=True)
    with pytest.raises(ValueError, match="`num_classes`.*4.*3"):
        fit(make_learner(weighted))
    with pytest.raises(ValueError, match="one output for each class"):
        loss(np.zeros((4, 1)), np.zeros((4, 1), "float32"))
    for make, message in (
        (lambda: hs.losses.LearnableLabelSmoothing(0.0), "initial_value"),
        (lambda: hs.losses.LearnableLabelSmoothing(0.5, 0.4), "initial_value"),
        (lambda: hs.losses.LearnableLabelSmoothing(0.5, 1.5), "max_value"),
        (lambda: hs.losses.LearnableClassWeights(1), "num_classes"),
        (lambda: hs.losses.LearnableLabelSmoothing(0.5, None), "max_value"),
        (lambda: hs.losses.LearnableClassWeights(2.5), "num_classes"),
        (lambda: hs.losses.LearnableClassWeights(None), "num_classes"),
        (lambda: hs.losses.LearnableClassWeights(2, "1"), "initial_value"),
        (lambda: hs.losses.LearnableClassWeights(2, [1] * 3), "initial_value"),
        (lambda: hs.losses.LearnableClassWeights(2, [[], 1]), "initial_value"),
        (lambda: hs.losses.LearnableClassWeights(2, -1.0), "initial_value"),
        (lambda: hs.losses.LearnableClassWeights(2, [1, 10]), "initial_value"),
    ):
        with pytest.raises(ValueError, match=f"`{message}`.*Received"):
            make()
