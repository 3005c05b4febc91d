"""Two replicas compute what one does, and stay alike."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.training.placement import placement_of
from keras_hposgld.training.placement.replicas import Replicas


def make_data(n=64, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 8, 8, 1)) + 0.5 * y[:, None, None, None]
    return x.astype("float32"), y


def make_learner(
    estimator="hpo_sgld",
    synchronized=True,
    dropout=0.0,
    strategy=None,
    seed=1,
    temperature=1e-4,
    hyper_learning_rate=2.0,
    **compile_arguments,
):
    """A small CNN with batch normalization and a strength per parameter."""
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(
                    4, 3, kernel_regularizer=hs.regularizers.LearnableL2(1e-2)
                ),
                keras.layers.BatchNormalization(synchronized=synchronized),
                keras.layers.Activation("tanh"),
                keras.layers.Dropout(dropout),
                keras.layers.Flatten(),
                keras.layers.Dense(
                    3, kernel_regularizer=hs.regularizers.LearnableL2(1e-2)
                ),
            ]
        )
        learner = hs.BilevelModel(model, seed=seed)
        learner.compile(
            optimizer=hs.SGLD(0.05, temperature, seed=1, clipnorm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            hypergradient=estimator,
            # Not Adam: that would hide a factor.
            hyper_optimizer=keras.optimizers.SGD(
                hyper_learning_rate, momentum=0.9
            ),
            **compile_arguments,
        )
    return learner


def fit(learner, chains_per_epoch=5, **arguments):
    defaults = dict(
        outer_data=make_data(48, seed=1),
        batch_size=16,
        epochs=2,
        steps_per_epoch=chains_per_epoch * learner.hypergradient.num_steps,
        verbose=0,
    )
    return learner.fit(*make_data(), **(defaults | arguments)).history


def variables(learner):
    return [*learner.model.weights, *learner.hyperparameters]


def assert_close(learner, expected, atol=1e-5):
    for a, b in zip(variables(learner), variables(expected), strict=True):
        np.testing.assert_allclose(
            a.numpy(), b.numpy(), rtol=atol, atol=atol, err_msg=a.path
        )


def assert_replicas_are_alike(learner):
    for variable in variables(learner):
        first, *others = variable.value.values
        assert others
        for other in others:
            np.testing.assert_array_equal(first.numpy(), other.numpy())


ESTIMATORS = [
    hs.estimators.HPOSGLD(2, 2),
    pytest.param(hs.estimators.AdjointSGLD(2, 2), marks=pytest.mark.slow),
    pytest.param(hs.estimators.ScoreCovariance(2, 4), marks=pytest.mark.slow),
    pytest.param(hs.estimators.RMD(num_steps=3), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_two_replicas_compute_what_one_does(mirrored, estimator):
    is_score = isinstance(estimator, hs.estimators.ScoreCovariance)
    # Differences are divided by the temperature there: they need a warm chain.
    arguments = dict(
        estimator=estimator,
        temperature=0.05 if is_score else 1e-4,
        hyper_learning_rate=0.05 if is_score else 1.0,
    )
    validation = make_data(25, seed=2)
    one = make_learner(**arguments)
    expected = fit(one, epochs=10, validation_data=validation)
    two = make_learner(strategy=mirrored, **arguments)
    start = make_learner()
    history = fit(two, epochs=10, validation_data=validation)
    assert int(two.outer_iterations.numpy()) == 50
    assert_close(two, one)
    assert_replicas_are_alike(two)
    moved = [
        np.abs(a.numpy() - b.numpy()).max()
        for a, b in zip(two.hyperparameters, start.hyperparameters, strict=True)
    ]
    assert min(moved) > 0.01
    assert history.keys() == expected.keys()
    for key, values in expected.items():
        np.testing.assert_allclose(
            history[key], values, rtol=1e-4, atol=1e-5, err_msg=key
        )


def make_dense_learner(estimator, optimizer, strategy=None, **arguments):
    """A network without batch normalization, whose weights all matter.

    Adam divides a gradient of zero, such as that of a bias before batch
    normalization, by its own rounding errors.
    """
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(3)
        strength = hs.regularizers.LearnableL2(1e-2, granularity="input")
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(5, "tanh", kernel_regularizer=strength),
                keras.layers.Dense(3),
            ]
        )
        learner = hs.BilevelModel(model, seed=1)
        learner.compile(
            optimizer=optimizer(),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            hypergradient=estimator,
            hyper_optimizer=keras.optimizers.SGD(10.0, momentum=0.9),
            **arguments,
        )
    return learner


def fit_dense(learner):
    x, y = make_data(112)
    x = x.reshape(112, -1)[:, :6]
    learner.fit(
        x[:64],
        y[:64],
        outer_data=(x[64:], y[64:]),
        batch_size=16,
        steps_per_epoch=4 * learner.hypergradient.num_steps,
        verbose=0,
    )
    return learner


SLOTTED = {
    "ift_neumann": (
        hs.estimators.IFTNeumann(3, num_steps=3),
        lambda: hs.PSGLD(0.02, temperature=1e-4, seed=1),
    ),
    "ift_cg": (hs.estimators.IFTCG(3, num_steps=3), lambda: "adam"),
    "rmd": (
        hs.estimators.RMD(2, num_steps=3),
        lambda: hs.SGLD(0.05, temperature=1e-4, seed=1, momentum=0.9),
    ),
    "rmd_fo": (
        hs.estimators.RMDFO(3),
        lambda: keras.optimizers.RMSprop(0.01, momentum=0.5),
    ),
    "fmd": (hs.estimators.FMD(3), lambda: keras.optimizers.Adam(0.01)),
}


# The others run in CI: a trace of two replicas takes ten seconds.
QUICK = ("rmd", "ift_cg")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in SLOTTED
    ],
)
def test_two_replicas_hold_the_optimizer_state_of_one(mirrored, name):
    estimator, optimizer = SLOTTED[name]
    arguments = dict(run_eagerly=name == "rmd_fo")
    one, two = (
        fit_dense(make_dense_learner(estimator, optimizer, where, **arguments))
        for where in (None, mirrored)
    )
    assert_close(two, one)
    assert_replicas_are_alike(two)
    start = make_dense_learner(estimator, optimizer)
    for a, b in zip(two.hyperparameters, start.hyperparameters, strict=True):
        assert np.abs(a.numpy() - b.numpy()).max() > 1e-3
    expected = one.sampler.state_variables
    assert expected and two.sampler.state_variables.keys() == expected.keys()
    for slot, of_two in two.sampler.state_variables.items():
        for a, b in zip(of_two, expected[slot], strict=True):
            np.testing.assert_allclose(
                a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5, err_msg=a.path
            )
            first, second = a.value.values
            np.testing.assert_array_equal(first.numpy(), second.numpy())
            assert np.any(first.numpy() != 0.0), a.path


@pytest.mark.slow
def test_replicas_are_alike_bit_for_bit_after_500_noisy_iterations(mirrored):
    learner = make_learner(
        hs.estimators.HPOSGLD(1, 1),
        synchronized=False,
        dropout=0.2,
        strategy=mirrored,
        temperature=1e-3,
    )
    fit(learner, epochs=1, chains_per_epoch=500)
    assert int(learner.outer_iterations.numpy()) == 500
    assert_replicas_are_alike(learner)
    for variable in variables(learner):
        assert np.all(np.isfinite(variable.numpy()))


def test_local_batch_statistics_are_averaged(mirrored):
    # The policy of batch normalization: without `synchronized=True` each
    # replica normalizes by its own share, as in Keras, and the moving
    # statistics are averaged after the chain.
    learner = make_learner(
        hs.estimators.HPOSGLD(1, 1), synchronized=False, strategy=mirrored
    )
    x, y = make_data(16)
    learner.fit(
        x,
        y,
        outer_data=(x, y),
        batch_size=16,
        steps_per_epoch=1,
        shuffle=False,
        verbose=0,
    )
    norm = learner.model.layers[1]
    plain = make_learner(synchronized=False)
    conv = plain.model.layers[0]
    # The first of two steps only: its share of the statistics is exact.
    halves = [conv(part) for part in (x[:8], x[8:])]
    means = [keras.ops.mean(half, axis=(0, 1, 2)) for half in halves]
    first = 0.01 * (means[0] + means[1]) / 2
    second = norm.moving_mean.numpy() - 0.99 * first.numpy()
    np.testing.assert_allclose(second, first, rtol=0.5, atol=5e-3)
    assert_replicas_are_alike(learner)


@pytest.mark.slow
def test_evaluate_and_predict_on_sizes_that_do_not_divide(mirrored):
    one, two = make_learner(), make_learner(strategy=mirrored)
    for learner in (one, two):
        fit(learner, epochs=1, chains_per_epoch=1)
    x, y = make_data(13, seed=3)
    expected = one.evaluate(x, y, batch_size=4, return_dict=True, verbose=0)
    logs = two.evaluate(x, y, batch_size=4, return_dict=True, verbose=0)
    assert logs.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(logs[key], value, rtol=1e-5, err_msg=key)
    np.testing.assert_allclose(
        two.predict(x, batch_size=4, verbose=0),
        one.predict(x, batch_size=4, verbose=0),
        atol=1e-5,
    )
    np.testing.assert_allclose(
        two.evaluate(x, y, batch_size=4, verbose=0),
        one.evaluate(x, y, batch_size=4, verbose=0),
        rtol=1e-5,
    )


def test_one_device_strategy_is_the_same_bit_for_bit():
    plain = make_learner("rmd", temperature=0.0)
    single = make_learner(
        "rmd",
        temperature=0.0,
        strategy=tf.distribute.OneDeviceStrategy("/cpu:0"),
    )
    for learner in (plain, single):
        fit(learner)
    assert_close(single, plain, atol=0.0)
    x, y = make_data(13, seed=3)
    assert single.evaluate(x, y, verbose=0) == plain.evaluate(x, y, verbose=0)


@pytest.mark.slow
def test_mirrored_strategy_of_one_replica_serves_every_estimator():
    alone = tf.distribute.MirroredStrategy(["CPU:0"])
    for estimator in ("hpo_sgld", "ift_cg", "rmd"):
        expected, learner = (
            make_learner(estimator, strategy=strategy, temperature=0.0)
            for strategy in (None, alone)
        )
        for each in (expected, learner):
            fit(each, epochs=1, chains_per_epoch=2)
        assert_close(learner, expected)


@pytest.mark.slow
def test_chain_inside_of_replicas_gives_the_same(monkeypatch):
    # The way of TPUs, whose replicas can average in loops of their own: here
    # on one device, where any can.
    expected = make_learner("adjoint_sgld")
    fit(expected)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    learner = make_learner("adjoint_sgld", strategy=strategy)
    learner.placement = Replicas(strategy)
    learner.placement.averages_in_loops = True
    monkeypatch.setattr(Replicas, "check", lambda *arguments: None)
    fit(learner)
    assert_close(learner, expected)


@pytest.mark.slow
def test_training_goes_on_after_saving(mirrored, tmp_path):
    learner = make_learner("adjoint_sgld", strategy=mirrored)
    fit(learner)
    learner.save(tmp_path / "learner.keras")
    with mirrored.scope():
        loaded = keras.models.load_model(tmp_path / "learner.keras")
    alone = keras.models.load_model(tmp_path / "learner.keras")
    for other in (learner, loaded, alone):
        fit(other)
    assert_close(loaded, learner, atol=0.0)
    assert_close(alone, learner)


def test_numbers_that_are_not_finite_change_nothing(mirrored):
    learner = make_learner(strategy=mirrored, max_skipped_updates=3)
    before = [variable.numpy() for variable in variables(learner)]
    x, y = make_data(48, seed=1)
    x[5] = np.nan  # on one of the replicas
    with pytest.raises(RuntimeError, match="max_skipped_updates"):
        fit(learner, outer_data=(x, y), outer_batch_size=48)
    # The outer level failed: the weights go on.
    weights = {id(weight) for weight in learner.trainable_variables}
    for variable, value in zip(variables(learner), before, strict=True):
        if id(variable) in weights:
            assert np.isfinite(variable).all() and np.any(variable != value)
        elif "moving" not in variable.path:
            np.testing.assert_array_equal(variable.numpy(), value)
    assert_replicas_are_alike(learner)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_graph_does_not_grow_with_the_chain(mirrored, replicas):
    sizes = {}
    for num_steps in (10, 100):
        learner = make_learner(
            hs.estimators.HPOSGLD(num_steps // 2, num_steps // 2),
            strategy=mirrored if replicas == 2 else None,
        )
        fit(learner, epochs=1, chains_per_epoch=1)  # builds
        x, y = make_data(16)

        def stacked(array, n=num_steps):
            return tf.constant(np.stack([array] * n))

        batches = (stacked(x), stacked(y)), (stacked(x), stacked(y))

        if replicas == 2:

            def on_each(value):
                return mirrored.experimental_distribute_values_from_function(
                    lambda _: value
                )

            batches = tf.nest.map_structure(on_each, batches)

        def step(learner=learner, batches=batches):
            return learner.train_step(batches)

        function = tf.function(step).get_concrete_function()
        definition = function.graph.as_graph_def()
        sizes[num_steps] = len(definition.node) + sum(
            len(inner.node_def) for inner in definition.library.function
        )
    assert sizes[100] <= 1.05 * sizes[10]


class Unaware(hs.estimators.HPOSGLD):
    """An estimator that says nothing of replicas."""

    serves_replicas = False


@pytest.mark.parametrize(
    "estimator, arguments, message",
    [
        (Unaware(), {}, "`Unaware` cannot run on several replicas"),
        (
            hs.estimators.FMD(2),
            {},
            r"`FMD` cannot serve .*\(synchronized=True\)`.*2 replicas",
        ),
        ("hpo_sgld", dict(jit_compile=True), "`jit_compile=True` compiles"),
        (
            "hpo_sgld",
            dict(steps_per_execution=100),
            "`steps_per_execution` must be 1",
        ),
    ],
)
def test_what_cannot_be_distributed_is_refused(
    mirrored, estimator, arguments, message
):
    with pytest.raises(ValueError, match=message):
        fit(make_learner(estimator, strategy=mirrored, **arguments))


def test_batches_must_be_divisible(mirrored):
    with pytest.raises(ValueError, match="`x` must be divisible.*of 15"):
        fit(make_learner(strategy=mirrored), batch_size=15)
    with pytest.raises(ValueError, match="`outer_data` must be .*of 9"):
        fit(make_learner(strategy=mirrored), outer_data=make_data(9))


def test_model_made_outside_of_the_scope_is_refused(mirrored):
    model = make_learner().model
    with mirrored.scope():
        learner = hs.BilevelModel(model)
        with pytest.raises(ValueError, match="made outside of"):
            learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
    with mirrored.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    learner = hs.BilevelModel(
        model, regularizer=hs.regularizers.LearnableL2(0.1)
    )
    with pytest.raises(ValueError, match="made under"):
        learner.compile(optimizer=hs.SGLD(0.05), loss="mse")


def test_distributed_pieces_agree_on_a_closed_form(mirrored):
    # Clipping before the mean, or a mean that is missing, gives other numbers.
    with mirrored.scope():
        optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
        variable = keras.Variable(np.zeros(2, "float32"))
        optimizer.build([variable])
    Replicas(mirrored).apply(optimizer, [tf.constant([3.0, 4.0])], [variable])
    np.testing.assert_allclose(variable.numpy(), [-0.6, -0.8], rtol=1e-6)


def fit_with_callback(strategy=None, inner_data=None):
    with (strategy or tf.distribute.get_strategy()).scope():
        model = make_learner(strategy=strategy).model
        model.compile(
            keras.optimizers.SGD(0.05),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        learning = hs.callbacks.LearnHyperparameters(
            make_data(48, seed=1),
            hs.estimators.AdjointSGLD(1, 2),
            hs.SGLD(0.05, temperature=1e-4, seed=5),
            keras.optimizers.SGD(50.0),
            every=4,
            batch_size=8,
            inner_data=inner_data,
            seed=2,
        )
    history = model.fit(
        *make_data(),
        callbacks=[learning],
        batch_size=16,
        epochs=4,
        shuffle=False,
        verbose=0,
    )
    return model, learning, history.history


@pytest.mark.slow
def test_callback_on_two_replicas_does_what_it_does_on_one(mirrored):
    model, learning, expected = fit_with_callback(inner_data=make_data())
    other, learning_2, history = fit_with_callback(mirrored, make_data())
    assert int(learning.outer_level.iterations.numpy()) == 4
    start = make_learner().hyperparameters
    for a, b, s in zip(
        learning_2.hyperparameters,
        learning.hyperparameters,
        start,
        strict=True,
    ):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-5)
        assert np.abs(a.numpy() - s.numpy()).max() > 1e-3
        first, second = a.value.values
        np.testing.assert_array_equal(first.numpy(), second.numpy())
    for a, b in zip(other.weights, model.weights, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        history["outer_loss"], expected["outer_loss"], rtol=1e-4
    )


def test_callback_needs_the_data_on_several_replicas(mirrored):
    with pytest.raises(ValueError, match="`inner_data` must be given"):
        fit_with_callback(mirrored)


@pytest.mark.parametrize("estimator", ESTIMATORS[:2], ids=repr)
def test_mixed_derivative_may_depend_on_the_data(mirrored, estimator):
    # With learned regularizers it is the same on all replicas. Here it is not,
    # and v has to be averaged before it meets the derivative.
    def outer_objective(hypers, params, batch, carry):
        x, y = batch
        return tf.reduce_mean((tf.linalg.matvec(x, params[0]) - y) ** 2)

    def inner_objective(hypers, params, batch, carry):
        x, y = batch
        errors = (tf.linalg.matvec(x, params[0]) - y) ** 2
        return tf.reduce_mean(tf.exp(hypers[0] * x[:, 0]) * errors), carry

    problem = hs.BilevelProblem(
        inner_objective, outer_objective, initial_carry=([], [])
    )
    sampler = hs.SGLD(0.05, temperature=0.1, clipnorm=0.7)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 8, 3)), rng.normal(size=(2, 4, 8))

    def make_chain(average):
        return hs.estimators.Chain(
            problem,
            [tf.constant(0.3, tf.float64)],
            sampler,
            first_step=0,
            seed=tf.constant([1, 2]),
            average=average,
        )

    def run(strategy, batches):
        estimate = placement_of(strategy).run_chain(
            estimator,
            make_chain,
            lambda: [tf.ones(3, tf.float64)],
            *batches,
        )
        return estimate.hypergradient[0], estimate.params[0]

    def share(array):
        return mirrored.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                np.split(array, 2, axis=1)[context.replica_id_in_sync_group]
            )
        )

    levels = [(x[level], y[level]) for level in range(2)]
    shares = tf.nest.map_structure(share, levels)
    distributed = tf.function(lambda: run(mirrored, shares))()
    for a, b in zip(distributed, run(None, levels), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
