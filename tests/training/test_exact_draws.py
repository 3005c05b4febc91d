"""Exact draws of a linear model's weights in the `fit` of a `BilevelModel`."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import state
from builders import values
from problems import LinearGaussian

import keras_hposgld as hs

L = keras.layers
N, FEATURES = 40, 4
DATA = LinearGaussian(np.random.default_rng(0), FEATURES, N)


def make_learner(
    *layers,
    sampler=None,
    integrator="exact",
    regularizer=None,
    features=FEATURES,
    dense=None,
    outer=None,
    **arguments,
):
    model = keras.Sequential(
        [
            keras.Input((features,)),
            *layers,
            L.Dense(
                **dict(units=1, use_bias=False, kernel_regularizer=regularizer)
                | (dense or {})
            ),
        ]
    )
    learner = hs.BilevelModel(
        model,
        regularizer=None if regularizer else penalty(),
        seed=0,
        **(outer or {}),
    )
    if sampler is None:
        sampler = hs.SGLD("auto", integrator=integrator, seed=1)
    defaults = dict(
        loss=hs.losses.LearnableGaussianLoss(), hypergradient="evidence"
    )
    learner.compile(sampler, **(defaults | arguments))
    return learner


def make_alike(number=2, **arguments):
    """Learners that draw the same: strengths do so by their paths."""
    learners = []
    for _ in range(number):
        keras.utils.clear_session(free_memory=False)
        learners.append(make_learner(**arguments))
    return learners


def penalty(granularity="input", **arguments):
    return hs.regularizers.LearnableL2(granularity=granularity, **arguments)


def fit(learner, x=DATA.x, y=DATA.y[:, None], **arguments):
    defaults = dict(epochs=1, steps_per_epoch=4, verbose=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The hyperparameters were updated")
        warnings.filterwarnings("ignore", "None of the hyperparameters")
        return learner.fit(x, y, **(defaults | arguments))


def everything(learner):
    return [*state(learner), *values(learner)]


# What is drawn.


def with_prior(data, log_noise=0.0, rounds=500):
    """Where the gradient rule stands still, by a fixed point.

    A strength has the prior precision r, and r the prior Gamma(1/2, 1/2).
    """
    rate, n = np.ones(FEATURES), data.num_examples
    for _ in range(rounds):
        log_strengths = np.log(rate / (2 * n))
        mean, covariance = data.posterior(log_strengths, log_noise)
        rate = 1.0 / ((mean**2 + np.diag(covariance)) / 2 + 0.5)
        error = np.sum((data.y - data.x @ mean) ** 2)
        error += np.trace(data.x @ covariance @ data.x.T)
        log_noise = 0.5 * np.log(error / n)
    return log_strengths, log_noise


def test_strengths_and_noise_come_to_the_exact_optimum():
    learner = make_learner(
        hypergradient=hs.estimators.Evidence(update="gradient"),
        steps_per_execution=50,
    )
    seen = []
    record = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(
            [np.log(value).ravel() for value in values(learner)]
        )
    )
    fit(learner, epochs=60, steps_per_epoch=50, callbacks=[record])
    strengths, noise = (
        np.mean(part[20:], 0) for part in zip(*seen, strict=True)
    )
    log_strengths, log_noise = with_prior(DATA)
    # 2000 draws; the noise of one moves the logarithms by about 0.1.
    assert np.abs(strengths - log_strengths).max() < 0.03
    assert np.abs(noise - log_noise).max() < 0.03


def posterior_of_noise(temperature, prior_precision):
    """Mean and deviation of log sigma, and the mean weights, by quadrature."""
    log_noise = np.linspace(-2.5, 1.5, 801)
    share = 1.0 / (N * temperature)  # how many examples one counts for
    logs, means = [], []
    for one in log_noise:
        noise_variance = np.exp(2 * one) / share
        gram = DATA.x.T @ DATA.x / noise_variance
        precision = gram + prior_precision * np.eye(FEATURES)
        force = DATA.x.T @ DATA.y / noise_variance
        mean = np.linalg.solve(precision, force)
        fit = force @ mean - DATA.y @ DATA.y / noise_variance
        likelihood = (fit - np.linalg.slogdet(precision)[1]) / 2
        likelihood -= share * N * one
        # Half-Cauchy, and the derivative of sigma by its logarithm.
        prior = -np.log1p(np.exp(2 * one)) + one
        logs.append(likelihood + prior)
        means.append(mean)
    weight = np.exp(logs - np.max(logs))
    weight /= weight.sum()
    mean = weight @ log_noise
    deviation = np.sqrt(weight @ (log_noise - mean) ** 2)
    return mean, deviation, weight @ np.array(means)


@pytest.mark.parametrize("temperature", [0.0, 2.0 / N])
def test_noise_is_drawn_from_its_law(temperature):
    number = 3000
    learner = make_learner(
        sampler=hs.SGLD("auto", temperature, integrator="exact", seed=1),
        regularizer=keras.regularizers.L2(0.05),
        steps_per_execution=100,
    )
    draws = tf.Variable(tf.zeros([number, 1 + FEATURES]))
    level, (noise,) = learner.outer_level, learner.hyperparameters

    def keep(estimate):
        row = tf.concat([noise[None], estimate.params[0][:, 0]], 0)
        draws[level.iterations.value - 1].assign(row)

    level.observers.append(keep)
    fit(learner, steps_per_epoch=number)
    raw, weights = draws.numpy()[100:, 0], draws.numpy()[100:, 1:]
    log_noise = np.log(10.0) - np.log1p(np.exp(-raw))
    tau = temperature or 1.0 / N
    mean, deviation, of_weights = posterior_of_noise(tau, 2 * 0.05 / tau)
    # One draw after the other is nearly independent: 2000 count.
    assert abs(log_noise.mean() - mean) < 5 * deviation / np.sqrt(2000)
    assert abs(log_noise.std() / deviation - 1) < 5 / np.sqrt(2 * 2000)
    error = (weights.mean(0) - of_weights) / weights.std(0)
    assert np.abs(error).max() < 5 / np.sqrt(2000)


def test_an_example_of_weight_two_counts_twice():
    weighted, doubled = make_alike()
    fit(weighted, sample_weight=np.tile([2.0, 0.0], N // 2))
    twice = np.repeat(np.arange(0, N, 2), 2)
    fit(doubled, DATA.x[twice], DATA.y[twice, None])
    assert_equal(everything(weighted), everything(doubled), rtol=1e-4)


KINDS = {
    "parameter": dict(regularizer=penalty("parameter")),
    "output": dict(regularizer=penalty("output")),
    "center": dict(regularizer=penalty("tensor", center="initial")),
    "bias": dict(dense=dict(units=2, use_bias=True)),
    "bias_with_penalty": dict(
        dense=dict(
            units=2, use_bias=True, bias_regularizer=penalty("parameter")
        )
    ),
    "bias_with_constant": dict(
        dense=dict(
            use_bias=True, bias_regularizer=keras.regularizers.L2(0.5), units=2
        )
    ),
    "layers_before": dict(dense=dict(units=2, use_bias=True)),
}


def test_hypergradient_is_that_at_the_draw(float64):
    learner, seen = make_learner(run_eagerly=True), []
    learner.outer_level.observers.append(seen.append)
    fit(learner, steps_per_epoch=1)  # which sets the start of the strengths
    hypers = [tf.constant(v.numpy()) for v in learner.hyperparameters]
    bound = learner.find_hyperparameters()[0].max_value
    learner.outer_level.observers.append(seen.append)
    fit(learner, steps_per_epoch=1)
    estimate = seen[-1]
    with tf.GradientTape() as tape:
        tape.watch(hypers)
        (raw, noise), (kernel,) = hypers, estimate.params
        log_sigma = tf.math.log(10.0 * tf.sigmoid(noise))
        error = DATA.y[:, None] - DATA.x @ kernel
        loss = tf.reduce_mean(error**2) * tf.exp(-2 * log_sigma) / 2 + log_sigma
        log_strength = np.log(bound) + tf.math.log_sigmoid(raw)
        squares = tf.reshape(kernel, raw.shape) ** 2
        loss += tf.reduce_sum(
            tf.exp(log_strength) * squares - log_strength / 2 / N
        )
    assert_equal(estimate.hypergradient, tape.gradient(loss, hypers), rtol=1e-6)
    expected = [np.sum(error**2), float(N)]
    np.testing.assert_allclose(estimate.squared_errors, expected, rtol=1e-6)


# Both forms of a draw, with more inputs than examples and without.
CASES = [(case, 3 if number % 2 else N) for number, case in enumerate(KINDS)]


@pytest.mark.parametrize(("case", "number"), CASES)
def test_law_is_that_of_the_loss(case, number):
    # Draws are refused where the loss of the model is another one.
    arguments = dict(dense=dict(units=2, use_bias=False)) | KINDS[case]
    layers = [L.Rescaling(2.0, 1.0)] if case == "layers_before" else []
    learner = make_learner(*layers, **arguments, run_eagerly=True)
    rng = np.random.default_rng(0)
    for variable in learner.hyperparameters[:-1]:  # strengths of order one
        variable.assign(rng.normal(size=variable.shape))
    y = np.stack([DATA.y, 1 - DATA.y], 1)[:number]
    history = fit(learner, DATA.x[:number], y, steps_per_epoch=2).history
    assert learner.draws_exactly and history["skipped_updates"] == [0.0]
    assert int(learner.optimizer.iterations) == 2  # a draw for each batch


def test_functional_models_and_datasets_are_served():
    inputs = {
        "a": keras.Input((3,), name="a"),
        "b": keras.Input((1,), name="b"),
    }
    outputs = L.Dense(1, kernel_regularizer=penalty())(
        L.Concatenate()(list(inputs.values()))
    )
    learner = hs.BilevelModel(keras.Model(inputs, outputs), seed=0)
    learner.compile(
        hs.SGLD("auto", integrator="exact"),
        hs.losses.LearnableGaussianLoss(),
        hypergradient="evidence",
        run_eagerly=True,
    )
    x = {"a": DATA.x[:, :3], "b": DATA.x[:, 3:]}
    data = tf.data.Dataset.from_tensor_slices((x, DATA.y[:, None])).batch(N)
    fit(learner, data, None)
    assert learner.draws_exactly


# When weights are drawn.


def correlated(number=N, features=FEATURES):
    rng = np.random.default_rng(1)
    common = rng.normal(size=(number, 1))
    return 30 * (common + 1e-2 * rng.normal(size=(number, features)))


CHOICES = {
    "correlated": ("auto", None, correlated(), True),
    "independent": ("auto", None, DATA.x, False),
    "more_inputs": ("auto", None, correlated(features=60) / 60, True),
    "averaged": ("auto", "averaged", correlated(), False),
    "exponential": ("auto", "exponential", correlated(), False),
    "own_rate": (1e-6, "exponential", correlated(), False),
    "exact": ("auto", "exact", DATA.x, True),
}


@pytest.mark.parametrize("case", CHOICES)
def test_draws_are_chosen_where_steps_do_not_mix(case):
    rate, integrator, x, expected = CHOICES[case]
    given = {} if integrator is None else {"integrator": integrator}
    learner = make_learner(
        sampler=hs.SGLD(rate, seed=0, **given),
        features=x.shape[1],
        hypergradient=hs.estimators.Evidence(0, 2),
        run_eagerly=True,
    )
    assert not learner.draws_exactly
    fit(learner, x, steps_per_epoch=2)
    assert learner.draws_exactly == expected


def test_a_network_takes_steps_and_other_data_change_the_choice():
    sampler = hs.SGLD("auto", seed=0)
    arguments = dict(
        hypergradient=hs.estimators.Evidence(0, 2), run_eagerly=True
    )
    network = make_learner(L.Dense(2, "tanh"), sampler=sampler, **arguments)
    fit(network, correlated(), steps_per_epoch=2)
    assert not network.draws_exactly
    learner = make_learner(sampler=hs.SGLD("auto", seed=0), **arguments)
    for x, expected in ((correlated(), True), (DATA.x, False)):
        fit(learner, x, steps_per_epoch=2)
        assert learner.draws_exactly == expected


def test_it_is_said_what_was_chosen(capsys):
    arguments = dict(run_eagerly=True, sampler=hs.SGLD("auto", seed=0))
    fit(make_learner(**arguments), correlated(), verbose=2)
    assert f"one draw for each batch of all {N} ex" in capsys.readouterr().out
    fit(make_learner(**arguments), correlated())
    fit(make_learner(run_eagerly=True), verbose=2)  # it was asked for
    assert "draw" not in capsys.readouterr().out


@pytest.mark.parametrize("integrator", [None, "exact", "averaged"])
def test_config_keeps_what_was_given(integrator):
    sampler = hs.SGLD("auto", integrator=integrator)
    assert sampler.get_config()["integrator"] == integrator
    again = hs.SGLD.from_config(sampler.get_config())
    assert again.draws_exactly == sampler.draws_exactly


class Penalized(L.Layer):
    def call(self, x):
        self.add_loss(tf.reduce_mean(x**2))
        return x


class Steep(L.Dense):
    """A layer that is not linear in its weights."""

    def call(self, x):
        return super().call(x) ** 3


REFUSED = {
    "network": (dict(layers=[L.Dense(3)]), "those of one `Dense` layer"),
    "subclass": (dict(layers=[Steep(3)]), "those of one `Dense` layer"),
    "activation": (dict(dense=dict(activation="sigmoid")), "an activation"),
    "loss": (dict(loss="poisson"), "`LearnableGaussianLoss`"),
    "l1": (
        dict(regularizer=hs.regularizers.LearnableL1()),
        "penalties that are quadratic",
    ),
    "constant_l1": (
        dict(dense=dict(bias_regularizer="l1", use_bias=True)),
        "penalties that are quadratic",
    ),
    "activity": (
        dict(dense=dict(activity_regularizer=keras.regularizers.L2(0.5))),
        "and nothing else",
    ),
    "estimator": (
        dict(hypergradient="hpo_sgld", outer=dict(outer_split=0.5)),
        'hypergradient="evidence"',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_models_of_another_kind(case):
    arguments, message = REFUSED[case]
    arguments = dict(arguments)
    layers = arguments.pop("layers", [])
    with pytest.raises(
        ValueError, match=f'"exact"` needs .*{message}|Keras\'s L1 cannot'
    ) as error:
        fit(make_learner(*layers, **arguments), np.abs(DATA.x), np.abs(DATA.y))
    assert "Received: " in str(error.value)


def test_refuses_data_of_another_kind():
    data = tf.data.Dataset.from_tensor_slices((DATA.x, DATA.y[:, None]))
    with pytest.raises(ValueError, match="hold all examples. Received: one of"):
        fit(make_learner(), data.batch(N // 2), None)
    x = np.zeros((2001, FEATURES))
    with pytest.raises(ValueError, match="at most 2000 examples. Rec.* 2001"):
        fit(make_learner(), x, x[:, :1])
    free = make_learner(regularizer=keras.regularizers.L2(0.0))
    with pytest.raises(ValueError, match="4 inputs and 3 examples"):
        fit(free, DATA.x[:3], DATA.y[:3, None])


def test_refuses_replicas(mirrored):
    with mirrored.scope():
        learner = make_learner()
    with pytest.raises(ValueError, match="one replica. Received: .* 2 of them"):
        fit(learner)


# What Keras's users do.


def test_a_saved_learner_goes_on_bit_for_bit(tmp_path):
    whole, half = make_alike(integrator=None)
    fit(whole, correlated(), epochs=2)
    fit(half, correlated())
    half.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    fit(loaded, correlated())
    assert loaded.draws_exactly
    assert_equal(everything(loaded), everything(whole))


def test_numbers_that_are_not_finite_never_reach_the_weights():
    learner = make_learner(run_eagerly=True)
    fit(learner)
    before = [*learner.model.get_weights(), *values(learner)]
    y = np.full([N, 1], np.nan)
    history = fit(learner, y=y, steps_per_epoch=2).history
    assert history["skipped_updates"] == [2.0]
    after = [*learner.model.get_weights(), *values(learner)]
    assert_equal(after, before)


def test_compiled_by_xla():
    learner, plain = make_learner(jit_compile=True), make_learner()
    for one in (learner, plain):
        fit(one, steps_per_epoch=1)
    # The first draw, before strengths whose draws are others under XLA.
    weights = [one.trainable_variables[0] for one in (learner, plain)]
    np.testing.assert_allclose(*weights, rtol=1e-5)
    assert np.isfinite(values(learner)[0]).all()


def test_several_draws_in_an_execution_are_the_same():
    plain, learner = make_alike()
    learner.compile(
        hs.SGLD("auto", integrator="exact", seed=1),
        hs.losses.LearnableGaussianLoss(name=plain.loss.name),
        hypergradient="evidence",
        steps_per_execution=2,
    )
    for one in (learner, plain):
        fit(one)
    assert learner.steps_per_execution == 2  # chains of one batch
    assert_equal(everything(learner), everything(plain))
