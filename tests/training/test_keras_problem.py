"""What Keras does to weights beside the gradient, a chain does too."""

import builders
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.training import keras_problem

CONSTRAINTS = {
    "non_neg": lambda: "non_neg",
    "max_norm": lambda: keras.constraints.MaxNorm(0.6),
    "unit_norm": lambda: keras.constraints.UnitNorm(axis=1),
    "min_max_norm": lambda: keras.constraints.MinMaxNorm(0.5, 0.7, rate=0.8),
}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.5),
    "adam": lambda: keras.optimizers.Adam(0.02, use_ema=True, ema_momentum=0.8),
    "adamw": lambda: keras.optimizers.AdamW(0.02, weight_decay=0.5),
}
CHAIN = 4


def make_data(number=48, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, 4))
    y = np.sin(x[:, :1]) - x[:, 1:2] * x[:, 2:3]
    return [array.astype(keras.config.floatx()) for array in (x, y)]


def make_model(constraint=None, middle=None):
    keras.utils.set_random_seed(3)
    return keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                5,
                "tanh",
                kernel_regularizer=hs.regularizers.LearnableL2(
                    0.05, granularity="tensor", max_value=2.0
                ),
                kernel_constraint=constraint,
            ),
            *([middle] if middle else []),
            keras.layers.Dense(1, kernel_constraint=constraint),
        ]
    )


def learn(model, optimizer, epochs=2, **arguments):
    learner = hs.BilevelModel(model, seed=5)
    arguments = {
        "hypergradient": hs.estimators.HPOSGLD(1, CHAIN - 1),
        "hyper_optimizer": keras.optimizers.SGD(0.0),
        **arguments,
    }
    learner.compile(optimizer=optimizer, loss="mse", **arguments)
    learner.fit(
        *make_data(),
        outer_data=make_data(24, seed=1),
        batch_size=6,
        epochs=epochs,
        verbose=0,
    )
    return learner


def train_plainly(model, optimizer):
    model.compile(optimizer, loss="mse")
    return builders.train_plainly(model, make_data(), 6, CHAIN, 4)


def assert_equal_weights(ours, others, **tolerance):
    for a, b in zip(ours.weights, others.weights, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 0, **tolerance})


@pytest.mark.parametrize(
    "constraint, optimizer",
    [
        pytest.param(
            constraint,
            optimizer,
            marks=[]
            if optimizer == "sgd" or constraint == "max_norm"
            else pytest.mark.slow,
        )
        for constraint in CONSTRAINTS
        for optimizer in OPTIMIZERS
    ],
)
def test_weights_with_constraints_are_those_of_keras(constraint, optimizer):
    make = CONSTRAINTS[constraint]
    learner = learn(make_model(make()), OPTIMIZERS[optimizer]())
    plain = train_plainly(make_model(make()), OPTIMIZERS[optimizer]())
    assert_equal_weights(learner.model, plain, atol=1e-6)
    # Without the constraint they are others.
    free = train_plainly(make_model(), OPTIMIZERS[optimizer]())
    kernels = [m.layers[-1].kernel.numpy() for m in (plain, free)]
    assert np.max(np.abs(kernels[0] - kernels[1])) > 0.05


class AboveByPath(keras.constraints.Constraint):
    """A user's constraint, which asks more of a variable than its value."""

    def __call__(self, w):
        lowest = 0.05 if w.path.endswith("kernel") else -1.0
        return w * keras.ops.cast(w >= lowest, w.dtype)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_constraint_of_a_user_sees_the_variable(jit_compile):
    learner = learn(
        make_model(AboveByPath()), hs.SGLD(0.1), jit_compile=jit_compile
    )
    plain = train_plainly(make_model(AboveByPath()), hs.SGLD(0.1))
    assert_equal_weights(learner.model, plain, atol=1e-6)
    assert np.any(learner.model.layers[0].kernel == 0.0)


def test_constraints_hold_under_two_replicas(mirrored):
    def weights(strategy):
        with strategy.scope():
            model = make_model("non_neg")
            learner = learn(
                model,
                hs.SGLD(0.1),
                hyper_optimizer=keras.optimizers.SGD(1.0),
                epochs=1,
            )
        return learner.model.get_weights()

    one = weights(tf.distribute.get_strategy())
    for ours, expected in zip(weights(mirrored), one, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert np.any(one[0] == 0.0)


# Hypergradients, against differences through Keras's own training.


def outer_after(model, start, log_strength, num_steps, rate=0.2):
    """The outer loss after plain training, by its unconstrained strength."""
    model.set_weights(start)
    (variable,) = strengths(model)
    variable.assign(log_strength)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.5), loss="mse", run_eagerly=True
    )
    x, y = make_data()
    for step in range(num_steps):
        batch = slice(12 * step, 12 * step + 12)
        model.train_on_batch(x[batch], y[batch])
    x, y = make_data(24, seed=1)
    return float(keras.ops.mean((model(x, training=False) - y) ** 2))


def strengths(model):
    return hs.BilevelModel(model).hyperparameters


def hypergradient_of(model, start, estimator, num_steps, rate=0.2):
    model.set_weights(start)
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=keras.optimizers.SGD(rate, momentum=0.5),
        loss="mse",
        hypergradient=estimator,
    )
    x, y = make_data()
    keras_problem.build_on(learner, (x[:12], y[:12]))
    learner._prepare()
    problem = keras_problem.KerasProblem(
        learner,
        learner.hyperparameters,
        keras_problem.layer_variables(model),
        learner.outer_level.loss(learner),
    )
    chain = hs.estimators.Chain(
        problem,
        keras_problem.tensors(learner.hyperparameters),
        learner.sampler,
        0,
        tf.constant([0, 0]),
    )
    stack = [a.reshape(-1, 12, a.shape[1])[:num_steps] for a in (x, y)]
    outer = [np.repeat(a[None], num_steps, 0) for a in make_data(24, seed=1)]

    @tf.function(autograph=False)
    def solve():
        return hs.estimators.run_chain(
            estimator,
            chain,
            keras_problem.tensors(problem.weights),
            tuple(map(tf.constant, stack)),
            tuple(map(tf.constant, outer)),
        ).hypergradient

    (hypergradient,) = solve()
    return float(hypergradient)


def check_exact(model, kinds, num_steps):
    (variable,) = strengths(model)
    start = model.get_weights()
    at, distance = variable.numpy(), 1e-4
    values = [
        outer_after(model, start, at + sign * distance, num_steps)
        for sign in (1.0, -1.0)
    ]
    exact = (values[0] - values[1]) / (2 * distance)
    variable.assign(at)
    for estimator in kinds:
        found = hypergradient_of(model, start, estimator, num_steps)
        np.testing.assert_allclose(found, exact, rtol=1e-6, err_msg=estimator)


@pytest.mark.parametrize(
    "constraint",
    [
        "non_neg",
        "max_norm",
        pytest.param("unit_norm", marks=pytest.mark.slow),
        pytest.param("min_max_norm", marks=pytest.mark.slow),
    ],
)
def test_hypergradient_under_constraints_is_exact(constraint, float64):
    model = make_model(CONSTRAINTS[constraint]())
    check_exact(
        model,
        [hs.estimators.RMD(num_steps=4), hs.estimators.FMD(num_steps=4)],
        num_steps=4,
    )
    check_exact(model, [hs.estimators.HPOSGLD(0, 1)], num_steps=1)


@pytest.mark.parametrize(
    "momentum",
    [
        0.5,
        pytest.param(0.0, marks=pytest.mark.slow),
        pytest.param(0.99, marks=pytest.mark.slow),
    ],
)
def test_hypergradient_goes_through_moving_statistics(momentum, float64):
    model = make_model(
        middle=keras.layers.BatchNormalization(momentum=momentum)
    )
    check_exact(
        model,
        [hs.estimators.RMD(num_steps=3), hs.estimators.FMD(num_steps=3)],
        num_steps=3,
    )


# What is refused by name.


class Assigning(keras.layers.Dense):
    """Clips its kernel while it is trained."""

    def call(self, inputs, training=False):
        if training:
            self.kernel.assign(keras.ops.clip(self.kernel, -0.2, 0.2))
        return super().call(inputs)


REFUSED = r"must not assign to a trainable weight .*/kernel'.*without assigning"


def check_refused(model, train):
    before = [weight.numpy() for weight in model.trainable_variables]
    with pytest.raises(ValueError, match=REFUSED):
        train()
    for ours, expected in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_weights_that_a_call_assigns_are_refused(run_eagerly):
    model = make_model(middle=Assigning(5))
    check_refused(
        model, lambda: learn(model, hs.SGLD(0.1), run_eagerly=run_eagerly)
    )


def test_spectral_normalization_is_refused_unless_it_is_frozen():
    def make():
        keras.utils.set_random_seed(2)
        dense = keras.layers.Dense(5)
        return make_model(middle=keras.layers.SpectralNormalization(dense))

    models = [make() for _ in range(3)]
    check_refused(models[2], lambda: learn(models[2], hs.SGLD(0.1)))
    # A frozen layer's kernel is a state like any other, and Keras agrees.
    for model in models[:2]:
        model.layers[1].trainable = False
    learner = learn(models[0], hs.SGLD(0.1))
    plain = train_plainly(models[1], hs.SGLD(0.1))
    assert_equal_weights(learner.model, plain, atol=1e-6)


def test_meta_model_refuses_and_adapts_within_constraints():
    x, y = make_data()
    model = make_model(middle=Assigning(5))
    meta = hs.MetaModel(model, seed=5)
    meta.compile(hs.SGLD(0.1), loss="mse")
    check_refused(model, lambda: meta.adapt(x, y))

    model = make_model("non_neg")
    meta = hs.MetaModel(model, seed=5)
    meta.compile(hs.SGLD(0.1), loss="mse", adaptation_steps=4)
    adapted = meta.adapt(x, y)
    plain = make_model("non_neg")
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    for _ in range(4):
        plain.train_on_batch(x, y)
    for ours, expected in zip(
        adapted.trainable_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert np.any(adapted.layers[0].kernel == 0.0)
    # The initial weights stay within it, too: the hyper optimizer sees to it.
    tasks = tf.data.Dataset.from_tensors(((x[:8], y[:8]), (x[8:], y[8:])))
    meta.compile(
        hs.SGLD(0.1), loss="mse", hyper_optimizer=keras.optimizers.SGD(0.5)
    )
    meta.fit(tasks.batch(1).repeat(5), verbose=0)
    kernel = model.layers[0].kernel.numpy()
    assert np.all(kernel >= 0.0) and np.any(kernel == 0.0)


def test_callback_refuses_and_its_chains_obey_constraints():
    def fit(model, **arguments):
        model.compile("sgd", "mse", run_eagerly=True)
        learning = hs.callbacks.LearnHyperparameters(
            outer_data=make_data(24, seed=1), every=2, batch_size=6, **arguments
        )
        learning.outer_level.observers.append(ends.append)
        model.fit(
            *make_data(),
            batch_size=48,
            epochs=4,
            callbacks=[learning],
            verbose=0,
        )

    ends = []
    with pytest.raises(ValueError, match=REFUSED):
        fit(
            make_model(middle=Assigning(5)),
            estimator=hs.estimators.HPOSGLD(1, 2),
        )
    fit(
        make_model("non_neg"),
        estimator=hs.estimators.HPOSGLD(1, 2),
        sampler=hs.SGLD(0.1),
    )
    lowest = [float(tf.reduce_min(end.params[0])) for end in ends]
    assert lowest and min(lowest) == 0.0


def test_weights_that_keras_sets_to_their_gradient_are_refused():
    model = make_model()
    model.layers[-1].quantize("float8")
    with pytest.raises(ValueError, match="must follow their gradient.*float8"):
        learn(model, hs.SGLD(0.1))
