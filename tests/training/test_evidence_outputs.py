"""The evidence of models with several outputs, and of usual kinds of models."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import values

import keras_hposgld as hs
from keras_hposgld.data.arrays import ArrayData
from keras_hposgld.hyperparameters.own_rules import ChainEnd

L = keras.layers
Gaussian = hs.losses.LearnableGaussianLoss
N, FEATURES, CLASSES = 60, 4, 3
TAU = 1 / N
LOGITS = dict(from_logits=True)


def make_data():
    """Inputs, and the targets of a regression and of three classes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, FEATURES))
    y = x[:, :1] - x[:, 1:2] + 0.5 * rng.normal(size=(N, 1))
    classes = np.argmax(
        x @ rng.normal(size=(FEATURES, CLASSES)) + rng.gumbel(size=(N, 3)), 1
    )
    return x, y, classes


def dense(units, name, **arguments):
    return L.Dense(
        units,
        name=name,
        kernel_regularizer=hs.regularizers.LearnableL2(
            0.02, granularity="tensor", max_value=20.0
        ),
        kernel_initializer=keras.initializers.RandomNormal(seed=0),
        **arguments,
    )


def make_learner(loss, *, in_dictionary=False, hidden=(), **arguments):
    """A model of one or two heads, `"number"` and `"label"`."""
    inputs = keras.Input((FEATURES,))
    x = inputs
    for layer in hidden:
        x = layer(x)
    outputs = {
        "number": dense(1, "number", use_bias=False)(x),
        "label": dense(CLASSES, "label", use_bias=False)(x),
    }
    model = keras.Model(
        inputs, outputs if in_dictionary else list(outputs.values())
    )
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(loss=loss, **(dict(hypergradient="evidence") | arguments))
    return learner


def fit(learner, x, y, **arguments):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The hyperparameters were updated")
        defaults = dict(epochs=2, steps_per_epoch=20, verbose=0)
        return learner.fit(x, y, **(defaults | arguments))


def both_losses():
    return [
        Gaussian(0.9),
        keras.losses.SparseCategoricalCrossentropy(**LOGITS),
    ]


def written_out(hypers, weights, batch):
    """The inner objective of two outputs, in TensorFlow."""
    x, (y, classes) = batch
    *strengths, noise = hypers
    deviation = 10 * tf.sigmoid(noise)
    number, label = sorted(weights, key=lambda weight: weight.shape[-1])
    fit = tf.reduce_mean((y - x @ number) ** 2) / (2 * deviation**2)
    fit += tf.math.log(deviation) + np.log(2 * np.pi) / 2
    fit += tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.cast(classes, tf.int32), x @ label
        )
    )
    for raw, weight in zip(strengths, weights, strict=True):
        fit += 20 * tf.sigmoid(raw) * tf.reduce_sum(weight**2)
    return fit


@pytest.mark.parametrize("in_dictionary", [False, True])
def test_one_chain_of_two_outputs_is_the_functional_estimate(
    float64, in_dictionary
):
    def sampler(temperature):
        return hs.SGLD(0.02, temperature, integrator="exponential", seed=1)

    x, y, classes = make_data()
    losses, targets = both_losses(), [y, classes]
    if in_dictionary:
        names = ("number", "label")
        losses = dict(zip(names, losses, strict=True))
        targets = dict(zip(names, targets, strict=True))
    learner = make_learner(
        losses,
        in_dictionary=in_dictionary,
        optimizer=sampler(0.0),
        hypergradient=hs.estimators.Evidence(1, 4, update="optimizer"),
        hyper_optimizer=keras.optimizers.SGD(1.0),
    )
    hypers = [tf.constant(v.numpy()) for v in learner.hyperparameters]
    params = [tf.constant(w.numpy()) for w in learner.trainable_variables]
    sizes = [param.shape.num_elements() for param in params]
    batches = ArrayData("x", (x, (y, classes)), 20, seed=0).chains(5)
    estimate = hs.hypergradient(
        hs.BilevelProblem(
            written_out,
            log_normalizer=lambda h, tau: sum(
                size / 2 * tf.math.log(np.pi * tau / (20 * tf.sigmoid(raw)))
                for size, raw in zip(sizes, h, strict=False)
            ),
            curvature=lambda h: [40 * tf.sigmoid(raw) for raw in h[:2]],
        ),
        hypers,
        params,
        estimator=hs.estimators.Evidence(1, 4),
        sampler=sampler(TAU),
        inner_batches=next(iter(batches)),
        seed=learner.sampler.chain_seed,
    )
    fit(learner, x, targets, batch_size=20, epochs=1, steps_per_epoch=5)
    moved = [
        h - v for h, v in zip(hypers, learner.hyperparameters, strict=True)
    ]
    # Each subtraction of numbers of order one rounds to 1e-16.
    assert_equal(moved, estimate.hypergradient, rtol=1e-9, atol=1e-14)
    assert_equal(list(learner.trainable_variables), estimate.params, rtol=1e-9)


def test_two_outputs_train_and_their_samples_predict_both():
    x, y, classes = make_data()
    learner = make_learner(both_losses(), posterior_samples=8)
    history = fit(learner, x, [y, classes], epochs=1, steps_per_epoch=1000)
    assert {"loss", "number_loss", "label_loss"} <= set(history.history)
    number, label = learner.posterior_predict(x)
    assert number.shape[1:] == (N, 1) and label.shape[1:] == (N, CLASSES)
    mean, logits = learner.predict(x, verbose=0)
    np.testing.assert_allclose(mean, number.mean(0), rtol=1e-4, atol=1e-5)
    # Of classes it is the probabilities that are averaged.
    np.testing.assert_allclose(
        keras.ops.softmax(logits),
        np.mean(keras.ops.softmax(label), axis=0),
        rtol=1e-4,
    )
    assert np.mean(np.argmax(logits, 1) == classes) > 0.6
    # The noise was 0.5.
    assert abs(values(learner)[-1] - 0.5) < 0.1
    assert np.abs(mean - (x[:, :1] - x[:, 1:2])).mean() < 0.2


@pytest.mark.parametrize("in_dictionary", [False, True])
def test_an_output_without_a_loss_is_left_alone(in_dictionary):
    x, y, _ = make_data()
    loss, targets = [Gaussian(0.9), None], [y, y]
    if in_dictionary:
        loss, targets = {"number": loss[0]}, {"number": y, "label": y}
    learner = make_learner(loss, in_dictionary=in_dictionary)
    fit(learner, x, targets, steps_per_epoch=100)
    assert values(learner)[-1] < 0.9
    predicted = keras.tree.flatten(learner.predict(x, verbose=0))
    assert {y.shape for y in predicted} == {(N, 1), (N, CLASSES)}


def test_one_noise_of_two_outputs_knows_of_both():
    x, y, _ = make_data()
    inputs = keras.Input((FEATURES,))
    heads = [dense(1, f"head_{i}")(inputs) for i in range(2)]
    learner = hs.BilevelModel(keras.Model(inputs, heads), seed=0)
    loss = Gaussian(1.0)
    learner.compile(loss=loss, hypergradient="evidence")
    fit(learner, x, [y, y], epochs=1)
    assert (loss.num_targets, loss.num_outputs) == (1, 2)
    # The variance moves by a fifth of its distance, whatever their number:
    # with the ratio 0.99 to the squares, log sigma by a thousandth.
    loss.variable.assign(0.0)
    end = ChainEnd(
        *("gibbs", TAU, None),
        slope=lambda variable: 2 * 0.01 * 0.5,
        number=tf.constant(0),
        seed_of=lambda variable, purpose=0: tf.constant([0, purpose]),
    )
    ((_, new),) = loss.renewed(end)
    change = tf.math.log_sigmoid(new) - tf.math.log_sigmoid(0.0)
    np.testing.assert_allclose(change, -0.001, rtol=1e-3)


REFUSED = {
    "mse": (
        [keras.losses.MeanSquaredError(), "sparse_categorical_crossentropy"],
        "`loss` must be minus a log-likelihood.*mean_squared_error",
    ),
    "named": (
        {"number": "mse", "label": "sparse_categorical_crossentropy"},
        "`loss` must be minus a log-likelihood.*loss='mse'",
    ),
    "sum": (
        [Gaussian(reduction="sum"), None],
        "must be a mean over the batch.*LearnableGaussianLoss",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_by_name_what_is_no_likelihood(case):
    loss, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make_learner(loss, in_dictionary=isinstance(loss, dict))


def test_refuses_means_that_no_temperature_makes_sums_of():
    x, y, classes = make_data()
    targets = np.eye(CLASSES)[classes]
    binary = keras.losses.BinaryCrossentropy(**LOGITS)
    for sampler in (None, hs.SGLD(0.01, temperature=TAU)):
        learner = make_learner([Gaussian(), binary], optimizer=sampler)
        with pytest.raises(ValueError, match=r"means over \[1, 3\] numbers"):
            fit(learner, x, [y, targets])


def test_refuses_several_losses_of_one_output():
    learner = hs.BilevelModel(keras.Sequential([dense(1, "one")]))
    learner.compile(loss=[Gaussian(), Gaussian()], hypergradient="evidence")
    x, y, _ = make_data()
    with pytest.raises(ValueError, match="1 outputs and 2 losses"):
        fit(learner, x, y)


def test_refuses_weights_of_losses():
    with pytest.raises(ValueError, match="`loss_weights` cannot be given"):
        make_learner(both_losses(), loss_weights=[1.0, 0.5])


# Usual kinds of models, with the default settings.


@pytest.mark.parametrize("axis", [0, 1])
def test_two_classes_are_learned_from_by_one_logit(axis):
    x, *_ = make_data()
    rng = np.random.default_rng(1)
    probability = 1 / (1 + np.exp(-2 * x[:, 0]))
    y = (rng.random(N) < probability).astype("float32")
    learner = hs.BilevelModel(keras.Sequential([dense(1, "logit")]), seed=0)
    learner.compile(
        loss=keras.losses.BinaryCrossentropy(**LOGITS),
        hypergradient="evidence",
    )
    fit(learner, x, y[:, None] if axis else y, steps_per_epoch=300)
    learned = keras.ops.sigmoid(learner.predict(x, verbose=0))[:, 0]
    # That of the true slope is 0.
    assert np.abs(np.asarray(learned) - probability).mean() < 0.1


@pytest.mark.parametrize(
    "layer", [L.BatchNormalization, lambda: L.Dropout(0.5)]
)
def test_layers_with_a_state_are_refused_unless_frozen(layer):
    x, y, classes = make_data()
    learner = make_learner(both_losses(), hidden=[layer()])
    with pytest.raises(ValueError, match='`layer_state="frozen"`'):
        fit(learner, x, [y, classes])
    learner = make_learner(
        both_losses(), hidden=[layer()], layer_state="frozen"
    )
    before = [v.numpy() for v in learner.model.non_trainable_variables]
    fit(learner, x, [y, classes])
    after = [v.numpy() for v in learner.model.non_trainable_variables]
    owned = {id(v) for v in learner.hyperparameters}
    for variable, old, new in zip(
        learner.model.non_trainable_variables, before, after, strict=False
    ):
        if "moving" in variable.path and id(variable) not in owned:
            np.testing.assert_array_equal(old, new)
    assert np.isfinite(np.concatenate([np.ravel(v) for v in after])).all()
    assert values(learner)[-1] != np.float32(0.9)


@pytest.mark.parametrize(
    "policy, kind",
    [
        ("mixed_bfloat16", "LearnableL2"),
        ("mixed_float16", "LearnableL2"),
        ("mixed_float16", "LearnableL1"),
    ],
    indirect=["policy"],
)
def test_half_precision_of_layers_trains_with_the_default_sampler(policy, kind):
    x, y, _ = make_data()
    regularizer = getattr(hs.regularizers, kind)(granularity="tensor")
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            L.Dense(8, activation="tanh", kernel_regularizer=regularizer),
            L.Dense(1, kernel_regularizer=regularizer, dtype="float32"),
        ]
    )
    assert model.layers[0].compute_dtype == policy.removeprefix("mixed_")
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(loss=Gaussian(), hypergradient="evidence")
    fit(learner, x, y, epochs=1, steps_per_epoch=600)
    assert {v.dtype for v in learner.trainable_variables} == {"float32"}
    assert (
        0.4 < values(learner)[-1] < 0.8
    )  # the noise: 1 at first, in truth 0.5
    error = learner.predict(x, verbose=0) - (x[:, :1] - x[:, 1:2])
    assert np.abs(error).mean() < 0.4  # of zero it is 1.1
