"""The noise model of labels: its formula, its law, what it learns."""

import contextlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.losses.learnable_loss import curvature_from_above

Noisy = hs.losses.NoisyLabelCrossentropy
CLASSES = 4
RATE = 0.3
T = np.array(
    [
        [0.7, 0.1, 0.15, 0.05],
        [0.2, 0.6, 0.1, 0.1],
        [0.01, 0.04, 0.9, 0.05],
        [0.1, 0.25, 0.15, 0.5],
    ]
)
OF_RATE = 0.1 + 0.6 * np.eye(CLASSES)
MATRICES = {"rate": (RATE, OF_RATE), "matrix": (T, T)}
EXACT = dict(rtol=1e-12)
each_noise = pytest.mark.parametrize("noise", MATRICES)


def make_loss(noise, **arguments):
    first, matrix = MATRICES[noise]
    return Noisy(CLASSES, noise, first, **arguments), matrix


def make_data(rng, *shape):
    logits = 3 * rng.normal(size=(*shape, CLASSES))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return rng.integers(0, CLASSES, shape), p, logits


def in_numpy(labels, p, matrix):
    """Minus the logarithm of the probability of each label, term by term."""
    flat = [
        -np.log(sum(row[k] * matrix[k, label] for k in range(CLASSES)))
        for label, row in zip(
            labels.ravel(), p.reshape(-1, CLASSES), strict=True
        )
    ]
    return np.reshape(flat, labels.shape)


@each_noise
@pytest.mark.parametrize("shape", [(6,), (3, 5)])
def test_value_is_the_formula(noise, shape, rng, float64, run):
    labels, p, logits = make_data(rng, *shape)
    expected = in_numpy(labels, p, MATRICES[noise][1])
    weights = rng.uniform(size=shape)
    one_hot = np.eye(CLASSES)[labels]
    forms = (labels, one_hot, labels[..., None])
    losses = [make_loss(noise, from_logits=b)[0] for b in (False, True)]

    def values(p, logits, *forms):
        return [
            (loss(form, y), loss(form, y, weights))
            for form in forms
            for loss, y in zip(losses, (p, logits), strict=True)
        ]

    for value, weighted in run(
        values, *map(tf.convert_to_tensor, (p, logits, *forms))
    ):
        np.testing.assert_allclose(value, expected.mean(), **EXACT)
        np.testing.assert_allclose(
            weighted, (weights * expected).mean(), **EXACT
        )


@each_noise
def test_a_rate_of_zero_leaves_the_cross_entropy(noise, rng, float64):
    labels, _, logits = make_data(rng, 8)
    loss = Noisy(CLASSES, noise, 1e-14, from_logits=True)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # The rate itself is what is left.
    np.testing.assert_allclose(
        loss(labels, logits), plain(labels, logits), rtol=1e-11
    )


@each_noise
def test_probabilities_of_the_labels_add_up_to_one(noise, rng, float64):
    _, p, _ = make_data(rng, 7)
    loss, matrix = make_loss(noise, reduction="none")
    loss.variable.assign_add(0.3 * rng.normal(size=loss.variable.shape))
    total = sum(np.exp(-loss(np.full(7, label), p)) for label in range(CLASSES))
    np.testing.assert_allclose(total, 1.0, **EXACT)
    np.testing.assert_allclose(loss.noise_matrix().numpy().sum(1), 1, **EXACT)
    assert float(loss.log_normalizer(0.1)) == 0.0
    assert np.abs(loss.noise_matrix() - matrix).max() > 0.005


@each_noise
def test_sure_predictions_and_tiny_rates_cost_finite_numbers(noise):
    logits = np.array([[1e4, -1e4, 0.0, 0.0]], "float32")
    loss = Noisy(CLASSES, noise, 1e-20, from_logits=True)
    # All but the rate is zero in float32.
    np.testing.assert_allclose(
        loss([1], logits), np.log(3) - np.log(1e-20), rtol=1e-6
    )
    np.testing.assert_allclose(loss([0], logits), 0.0, atol=1e-6)
    y = tf.constant(logits)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([y, loss.variable.value])
        value = loss([1], y)
    for source in (y, loss.variable.value):
        assert np.isfinite(tape.gradient(value, source)).all()
    # A noise that is zero in float32, too: no label is impossible.
    rows = 200.0 * np.eye(CLASSES)
    loss.variable.assign(-200.0 if noise == "rate" else rows)
    np.testing.assert_allclose(loss([1], logits), 60.0, rtol=1e-6)


@each_noise
def test_half_precision_is_widened(noise):
    for dtype in ("float16", "bfloat16"):
        half = tf.cast(tf.constant([[9.0, -9.0, 0.0, 1.0]]), dtype)
        loss, matrix = make_loss(noise, from_logits=True)
        p = tf.nn.softmax(tf.cast(half, "float64")).numpy()
        value = loss.call(np.array([1]), half)
        expected = in_numpy(np.array([1]), p, matrix)
        np.testing.assert_allclose(value, expected, rtol=1e-5)


@each_noise
def test_derivatives_are_difference_quotients(noise, rng, float64, run):
    labels, p, _ = make_data(rng, 5)
    loss, _ = make_loss(noise)
    start = loss.variable.numpy()

    def slope(p):
        with tf.GradientTape() as tape:
            tape.watch(loss.variable.value)
            value = loss(labels, p)
        return tape.gradient(value, loss.variable.value)

    direction = rng.normal(size=start.shape)
    found = np.sum(run(slope, tf.constant(p)) * direction)
    values = []
    for sign in (1, -1):
        loss.variable.assign(start + sign * 1e-5 * direction)
        values.append(float(loss(labels, p)))
    # Of second order in the step, beside rounding.
    np.testing.assert_allclose(
        found, (values[0] - values[1]) / 2e-5, rtol=1e-8, atol=1e-10
    )


@each_noise
def test_curvature_from_above_is_that_of_a_bound(noise, rng, float64):
    labels, _, logits = make_data(rng, 50)
    loss, _ = make_loss(noise, from_logits=True, reduction="none")
    move = tf.constant(rng.normal(size=logits.shape))

    def derivatives():
        place = tf.zeros([50], tf.float64)
        with tf.GradientTape() as second, tf.GradientTape() as first:
            first.watch(place)
            second.watch(place)
            value = loss(labels, logits + place[:, None] * move)
            slope = first.gradient(value, place)
        return slope, second.gradient(slope, place)

    slope, bend = derivatives()
    with curvature_from_above():
        slope_of_bound, bend_of_bound = derivatives()
    np.testing.assert_allclose(slope_of_bound, slope, rtol=1e-9)
    assert np.all(bend_of_bound > np.maximum(bend, 0)) and np.any(bend < 0)


@each_noise
def test_wrong_label_probability_is_by_bayes(noise, rng, float64):
    labels, p, logits = make_data(rng, 6)
    loss, matrix = make_loss(noise, from_logits=True)
    joint = p * matrix[:, labels].T  # (n, true class)
    joint /= joint.sum(1, keepdims=True)
    expected = 1 - joint[np.arange(6), labels]
    np.testing.assert_allclose(
        loss.wrong_label_probability(labels, logits), expected, rtol=1e-10
    )


# The rule under the evidence.


def expected_counts(labels, p, matrix):
    """N[k, j] / n: EM's first half, example by example."""
    counts = np.zeros((CLASSES, CLASSES))
    for label, row in zip(labels, p, strict=True):
        joint = row * matrix[:, label]
        counts[:, label] += joint / joint.sum()
    return counts / len(labels)


def end_of_chain(loss, labels, p, number=0):
    with tf.GradientTape() as tape:
        tape.watch(loss.variable.value)
        value = loss(labels, p)
    slope = tape.gradient(value, loss.variable.value)
    return ChainEnd(
        *("gradient", 1 / len(labels), None),
        slope=lambda variable: slope,
        number=tf.constant(number),
        seed_of=None,
    )


@each_noise
@pytest.mark.parametrize("prior", [0.0, 7.0])
def test_rule_steps_towards_the_counts_of_em(noise, prior, rng, float64):
    labels, p, _ = make_data(rng, 500)
    loss, matrix = make_loss(noise, prior_labels=prior)
    if noise == "rate":  # whose step is not to be cut off
        labels = np.array([rng.choice(CLASSES, p=row @ matrix) for row in p])
    loss.variable.assign_add(0.02 * rng.normal(size=loss.variable.shape))
    first, now = matrix, loss.noise_matrix().numpy()
    counts = expected_counts(labels, p, now)
    weight = prior / 500
    end = end_of_chain(loss, labels, p, number=300)
    ((_, new),) = loss.renewed(end)
    # Two outputs: twice as many labels, and so is what they sum up to.
    twice = Noisy(CLASSES, noise, MATRICES[noise][0], prior_labels=2 * prior)
    twice.variable.assign(loss.variable)
    twice.num_outputs = 2
    ((_, same),) = twice.renewed(end._replace(slope=lambda _: 2 * end.slope(0)))
    np.testing.assert_allclose(same, new, rtol=1e-12)
    loss.variable.assign(new)
    after = loss.noise_matrix().numpy()
    if noise == "rate":
        aim = counts.sum() - np.trace(counts)  # flipped
        aim = (aim + weight * RATE) / (1 + weight)
        now, after = 1 - now[0, 0], 1 - after[0, 0]
        change = 0.25 * (aim / now - 1)  # RATE / sqrt(1 + 300 / 100)
        assert abs(change) < 0.1
    else:
        row = counts.sum(1, keepdims=True)
        change = 0.25 * (counts + weight * first - now * (row + weight)) / now
    expected = now * np.exp(np.clip(change, -0.1, 0.1))
    if noise == "matrix":
        expected /= expected.sum(1, keepdims=True)
        assert np.abs(change).max() > 0.1 > np.abs(change).min()
    np.testing.assert_allclose(after, expected, rtol=1e-10)


def test_a_rate_stays_below_its_bound():
    loss = Noisy(2, initial_value=0.45, prior_labels=0.0)
    labels, p = np.ones(50, int), np.tile([0.999, 0.001], (50, 1))
    for _ in range(5):
        ((_, new),) = loss.renewed(end_of_chain(loss, labels, p))
        loss.variable.assign(new)
    np.testing.assert_allclose(loss.constrained(), 0.999 * 0.5, rtol=1e-5)


# What it says, and refuses.


def test_noise_that_leaves_the_classes_open_is_told():
    loss = Noisy(2, initial_value=0.47)
    assert loss.faults() == []
    loss.variable.assign(4.0)
    (fault,) = loss.faults()
    assert "flip rate is at its bound" in fault and "0.491" in fault
    loss, _ = make_loss("matrix")
    assert loss.faults() == []
    weak = T.copy()
    weak[1] = [0.3, 0.45, 0.2, 0.05]
    (fault,) = Noisy(CLASSES, "matrix", weak).faults()
    assert "of 1 class to" in fault and "{1: 0.45}" in fault


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_classes=1), "`num_classes` must be at least 2"),
        (dict(noise="flips"), "`noise` must be one of"),
        (dict(initial_value=0.7), "`initial_value` must lie between 0 and"),
        (dict(max_value=0.9), "`max_value` must be a finite number"),
        (dict(prior_labels=-1.0), "`prior_labels` must be"),
        (
            dict(initial_value=np.full((3, 3), 0.2)),
            "`initial_value` must be a number",
        ),
        (
            dict(noise="matrix", initial_value=np.eye(3)),
            "rows of positive numbers",
        ),
        (
            dict(noise="matrix", initial_value=np.full((2, 2), 0.5)),
            r"matrix of shape \(3, 3\)",
        ),
        (
            dict(noise="matrix", initial_value=[[0.2, 0.4, 0.4]] * 3),
            "largest number of each row",
        ),
        (
            dict(noise="matrix", initial_value=[[1], [0, 1]]),
            "rows of positive",
        ),
    ],
)
def test_refuses_what_is_no_noise(arguments, message):
    with pytest.raises(ValueError, match=f"{message}.*Received: "):
        Noisy(**{"num_classes": 3} | arguments)


def test_refuses_another_number_of_outputs():
    with pytest.raises(ValueError, match="num_classes=3 and predictions of"):
        Noisy(3)([0], [[0.5, 0.5]])


@each_noise
def test_what_was_learned_is_in_its_config(noise):
    loss, _ = make_loss(noise, prior_labels=3.0, from_logits=True)
    loss.variable.assign_add(tf.ones_like(loss.variable) * 0.25)
    copy = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(loss)
    )
    assert copy.get_config() == loss.get_config()
    assert copy.prior_labels == 3.0 and copy.noise == noise
    np.testing.assert_array_equal(copy.noise_matrix(), loss.noise_matrix())


# In a learner.


def noisy_data(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4)).astype("float32")
    y = x[:, :3].argmax(axis=1)
    return x, np.where(rng.uniform(size=n) < 0.3, rng.integers(0, 3, n), y)


def make_learner(loss, **arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    learner = hs.BilevelModel(model, seed=1)
    learner.compile(loss=loss, **arguments)
    return learner


def fit(learner, **arguments):
    defaults = dict(epochs=1, steps_per_epoch=120, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return learner.fit(*noisy_data(), **(defaults | arguments))


@each_noise
def test_evidence_learns_saves_and_refits_it(noise, tmp_path):
    loss = Noisy(3, noise, from_logits=True)
    learner = make_learner(loss, hypergradient="evidence")
    before = loss.noise_matrix().numpy()
    fit(learner)
    learned = loss.noise_matrix().numpy()
    assert np.abs(learned - before).max() > 1e-3
    # Plain predictions are the true classes', averaged as probabilities.
    x, _ = noisy_data()
    each = keras.ops.softmax(learner.posterior_predict(x))
    np.testing.assert_allclose(
        keras.ops.softmax(learner.predict(x, verbose=0)),
        np.mean(each, axis=0),
        rtol=1e-4,
    )
    exported = learner.export()
    np.testing.assert_allclose(
        exported.predict(x, verbose=0),
        learner.predict(x, verbose=0),
        *(1e-4, 1e-5),
    )
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    for trained in (learner, loaded):
        fit(trained)
    np.testing.assert_array_equal(
        loaded.loss.noise_matrix(), loss.noise_matrix()
    )
    learned = loss.noise_matrix().numpy()
    learner.refit(*noisy_data(), optimizer="adam", verbose=0)
    np.testing.assert_array_equal(loss.noise_matrix(), learned)


def test_outer_data_ask_for_the_loss_that_is_meant():
    loss = Noisy(3, from_logits=True)
    with pytest.raises(ValueError, match="`outer_loss` must be given"):
        make_learner(loss, optimizer=hs.SGLD(0.1))
    # Labels as noisy as the others: this very loss.
    learner = make_learner(loss, optimizer=hs.SGLD(0.1), outer_loss=loss)
    before = float(loss.constrained())
    fit(learner, outer_data=noisy_data(20, 1), batch_size=20)
    assert float(loss.constrained()) != before


def test_evidence_refuses_a_mean_over_places():
    model = keras.Sequential([keras.Input((5, 4)), keras.layers.Dense(3)])
    learner = hs.BilevelModel(model)
    learner.compile(loss=Noisy(3, from_logits=True), hypergradient="evidence")
    x, y = np.zeros((8, 5, 4), "float32"), np.zeros((8, 5), int)
    with pytest.raises(ValueError, match="a mean over 5 numbers"):
        learner.fit(x, y, verbose=0)


@pytest.mark.filterwarnings("ignore:Predictions are averages")
def test_warning_comes_at_the_end_of_a_fit():
    loss = Noisy(3, initial_value=0.66, from_logits=True, prior_labels=1e6)
    learner = make_learner(loss, hypergradient="evidence")
    with pytest.warns(UserWarning, match="flip rate is at its bound"):
        learner.fit(*noisy_data(), steps_per_epoch=120, verbose=0)


def test_replicas_learn_what_one_device_learns(mirrored, float64):
    def learned(scope):
        with scope:
            loss = Noisy(3, "matrix", from_logits=True)
            sampler = hs.SGLD(0.1, integrator="exponential", seed=1)
            learner = make_learner(
                loss, optimizer=sampler, hypergradient="evidence"
            )
        fit(learner, batch_size=20)
        return loss.noise_matrix()

    one = learned(contextlib.nullcontext())
    # Means over halves of batches round otherwise.
    np.testing.assert_allclose(learned(mirrored.scope()), one, rtol=1e-9)


@pytest.mark.parametrize("chain", ["training", "apart"])
def test_callback_learns_it_on_right_labels(chain):
    # A fifth of the labels is wrong, and the loss begins with a tenth.
    loss = Noisy(3, from_logits=True)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.03), loss=loss)
    x, y = noisy_data(300)
    outer = noisy_data(100, 1)[0]
    outer = outer, outer[:, :3].argmax(axis=1)
    callback = hs.callbacks.LearnHyperparameters(
        outer,
        chain=chain,
        every=5 if chain == "training" else 10,
        hyper_optimizer=keras.optimizers.Adam(0.3),
        outer_loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        seed=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(x, y, epochs=10, callbacks=[callback], verbose=0)
    (value,) = callback.hyperparameter_values().values()
    if chain == "apart":
        assert value > 0.12
    else:  # short chains first ask for steep losses
        assert abs(value - 0.1) > 0.01


# Oracles: two classes, one input, and the weight integrated out.


class OneWeight:
    """Logistic regression on one input, with a Gaussian prior of the weight.

    Args:
        flips: Pair: the shares of flipped labels of both classes.
        n: Integer, the number of examples.
    """

    variance = 4.0
    places = np.linspace(-4, 14, 3001)

    def __init__(self, flips, n=400):
        rng = np.random.default_rng(5)
        self.x = 1.5 * rng.normal(size=n)
        y = rng.uniform(size=n) < 1 / (1 + np.exp(-3 * self.x))
        flipped = rng.uniform(size=n) < np.where(y, flips[1], flips[0])
        self.y = (y ^ flipped).astype(int)
        self.p = 1 / (1 + np.exp(-np.outer(self.places, self.x)))

    def log_joint(self, matrix):
        """Of the labels and the weight, at all places."""
        one = (1 - self.p) * matrix[0][1] + self.p * matrix[1][1]
        logs = np.log(np.where(self.y == 1, one, 1 - one)).sum(1)
        return logs - self.places**2 / (2 * self.variance)

    def law(self, matrix):
        """The posterior of the weight, at all places."""
        logs = self.log_joint(matrix)
        density = np.exp(logs - logs.max())
        return density / density.sum()

    def best(self, noise, prior, first):
        """The flip rates that are most probable, by a search."""

        def cost(rates):
            if not np.all((rates > 0) & (rates < 0.5)):
                return np.inf
            rates = np.broadcast_to(rates, 2)
            matrix = np.array(
                [[1 - rates[0], rates[0]], [rates[1], 1 - rates[1]]]
            )
            logs = self.log_joint(matrix)
            value = np.log(np.sum(np.exp(logs - logs.max()))) + logs.max()
            own = first * np.log(rates) + (1 - first) * np.log(1 - rates)
            own = own[:1] if noise == "rate" else own
            return -value - prior * own.sum()

        optimize = pytest.importorskip("scipy.optimize", reason="a search")
        start = np.full(1 if noise == "rate" else 2, 0.2)
        tight = dict(xatol=1e-9, fatol=1e-10)
        found = optimize.minimize(
            cost, start, method="Nelder-Mead", options=tight
        )
        return np.broadcast_to(found.x, 2)


def rates_of(loss):
    matrix = loss.noise_matrix().numpy()
    return np.array([matrix[0, 1], matrix[1, 0]])


ONE_WEIGHT = {"rate": OneWeight((0.3, 0.3)), "matrix": OneWeight((0.3, 0.1))}


@each_noise
def test_rule_comes_to_the_most_probable_noise(noise, float64):
    # With slopes that are exact means over the posterior, by quadrature.
    oracle, n = ONE_WEIGHT[noise], 400
    loss = Noisy(2, noise, 0.2, prior_labels=25.0)
    p = np.stack([1 - oracle.p, oracle.p], -1)
    labels = np.broadcast_to(oracle.y, oracle.p.shape)

    @tf.function
    def slope(law):
        with tf.GradientTape() as tape:
            tape.watch(loss.variable.value)
            mean = tf.reduce_mean(loss.call(labels, p), 1)
            value = tf.reduce_sum(law * mean)
        return tape.gradient(value, loss.variable.value)

    for _ in range(150):
        now = slope(oracle.law(loss.noise_matrix().numpy()))
        end = ChainEnd(
            *("gradient", 1 / n, None),
            slope=lambda variable, now=now: now,
            number=tf.constant(0),
            seed_of=None,
        )
        ((_, new),) = loss.renewed(end)
        loss.variable.assign(new)
    # The search stops at the root of the rounding of its cost.
    np.testing.assert_allclose(
        rates_of(loss), oracle.best(noise, 25.0, 0.2), rtol=1e-5
    )


@pytest.mark.slow
@each_noise
def test_fit_comes_to_the_most_probable_noise(noise, float64):
    oracle, n = ONE_WEIGHT[noise], 400
    loss = Noisy(2, noise, from_logits=True)
    # The difference of both weights has the variance tau / strength.
    penalty = keras.regularizers.L2(1 / (n * oracle.variance))
    dense = keras.layers.Dense(2, use_bias=False, kernel_regularizer=penalty)
    learner = hs.BilevelModel(
        keras.Sequential([keras.Input((1,)), dense]), seed=0
    )
    learner.compile(
        hs.SGLD("auto", seed=0),
        loss,
        hypergradient=hs.estimators.Evidence(update="gradient"),
        steps_per_execution=10,
    )
    rates = []
    course = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: rates.append(rates_of(loss))
    )
    learner.fit(
        *(oracle.x[:, None], oracle.y),
        epochs=60,
        steps_per_epoch=200,
        callbacks=[course],
        verbose=0,
    )
    np.testing.assert_allclose(
        np.median(rates[20:], axis=0), oracle.best(noise, 10.0, 0.1), rtol=0.02
    )
