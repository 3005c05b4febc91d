"""`BilevelModel` whose inner steps are those of a Keras optimizer."""

import builders
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.data.arrays import ArrayData

OPTIMIZERS = {
    "sgd": lambda: "sgd",
    "sgd_nesterov": lambda: keras.optimizers.SGD(
        0.05, momentum=0.9, nesterov=True
    ),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01, momentum=0.5),
    "adam": lambda: "adam",
    "adam_clipped": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(0.01, 30), global_clipnorm=0.5
    ),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "adamax": lambda: keras.optimizers.Adamax(0.01, use_ema=True),
    "sgld_momentum": lambda: hs.SGLD(0.05, momentum=0.9),
}
CHAIN = 5


def make_data(number=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, 6)).astype("float32")
    return x, (x[:, 0] * x[:, 1] > 0).astype("int32")


def make_model(regularizer=None, seed=3):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(8, "tanh", kernel_regularizer=regularizer),
            keras.layers.Dense(2),
        ]
    )


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def learn(model, optimizer, epochs=2, rate=0.0, **arguments):
    """Fits a `BilevelModel`, by default with hyperparameters that stay."""
    learner = hs.BilevelModel(model, seed=5)
    learner.compile(
        optimizer=optimizer,
        loss=loss(),
        hypergradient=hs.estimators.HPOSGLD(2, CHAIN - 2),
        hyper_optimizer=keras.optimizers.SGD(rate),
        **arguments,
    )
    return fit(learner, epochs)


def fit(learner, epochs, **arguments):
    learner.fit(
        *make_data(),
        outer_data=make_data(32, seed=1),
        batch_size=8,
        epochs=epochs,
        verbose=0,
        **arguments,
    )
    return learner


def train_plainly(model, optimizer, num_chains):
    model.compile(optimizer, loss=loss())
    return builders.train_plainly(model, make_data(), 8, CHAIN, num_chains)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_are_those_of_keras_bit_for_bit(name):
    learner = learn(
        make_model(hs.regularizers.LearnableL2(0.02)), OPTIMIZERS[name]()
    )
    plain = train_plainly(
        make_model(hs.regularizers.LearnableL2(0.02)),
        keras.optimizers.get(OPTIMIZERS[name]()),
        num_chains=4,
    )
    assert int(learner.optimizer.iterations.numpy()) == 20
    for ours, own in zip(
        learner.trainable_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(ours, own)
    # The optimizer goes on from the same state, in its own variables.
    for ours, own in zip(
        learner.optimizer.variables, plain.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(ours, own)


def test_schedule_counts_inner_steps():
    rates = []

    class Recording(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            rates.append(int(tf.convert_to_tensor(step)))
            return 0.1 / (1.0 + tf.cast(step, tf.float32))

        def get_config(self):
            return {}

    learner = learn(
        make_model(hs.regularizers.LearnableL2(0.02)),
        keras.optimizers.Adam(Recording()),
        run_eagerly=True,
        epochs=1,
    )
    assert set(rates) >= set(range(2 * CHAIN))
    assert int(learner.optimizer.iterations.numpy()) == 2 * CHAIN


@pytest.mark.parametrize(
    "name, way",
    [
        ("adam", "keras"),
        ("psgld", "checkpoint"),
        pytest.param("sgld_momentum", "keras", marks=pytest.mark.slow),
        pytest.param("psgld", "keras", marks=pytest.mark.slow),
        pytest.param("adam", "checkpoint", marks=pytest.mark.slow),
        pytest.param("sgld_momentum", "checkpoint", marks=pytest.mark.slow),
    ],
)
def test_state_of_the_sampler_is_saved_and_resumed(name, way, tmp_path):
    def make():
        optimizer = hs.PSGLD(0.05, 1e-4, momentum=0.5, seed=2)
        if name != "psgld":
            optimizer = OPTIMIZERS[name]()
        model = make_model(hs.regularizers.LearnableL2(0.02, max_value=2.0))
        return learn(model, optimizer, epochs=1, rate=0.1)

    whole = fit(make(), 3, initial_epoch=1)
    stopped = make()
    slots = stopped.sampler.state_variables
    assert slots and all(
        np.any(variable.numpy() != 0)
        for part in slots.values()
        for variable in part
    )
    if way == "keras":
        stopped.save(tmp_path / "learner.keras")
        resumed = keras.saving.load_model(tmp_path / "learner.keras")
    else:
        tf.train.Checkpoint(learner=stopped).write(str(tmp_path / "state"))
        resumed = make()
        fit(resumed, 2, initial_epoch=1)  # another state than the saved one
        tf.train.Checkpoint(learner=resumed).read(
            str(tmp_path / "state")
        ).expect_partial()
    fit(resumed, 3, initial_epoch=1)
    for ours, expected in zip(
        [*resumed.trainable_variables, *resumed.hyperparameters],
        [*whole.trainable_variables, *whole.hyperparameters],
        strict=True,
    ):
        np.testing.assert_array_equal(ours, expected)
    for part, values in whole.sampler.state_variables.items():
        for ours, expected in zip(
            resumed.sampler.state_variables[part], values, strict=True
        ):
            np.testing.assert_array_equal(ours, expected)


def test_chains_that_start_anew_start_the_sampler_anew():
    # Each chain from the initial weights is one by itself: Adam's corrections
    # and its slots begin with it.
    learner = learn(
        make_model(hs.regularizers.LearnableL2(0.02)),
        "adam",
        epochs=2,
        start="initial",
    )
    batches = ArrayData("x", make_data(), 8, seed=5).chains(CHAIN)
    x, y = list(batches.take(4))[-1]
    plain = make_model(hs.regularizers.LearnableL2(0.02))
    plain.compile("adam", loss=loss())
    for step in range(CHAIN):
        plain.train_on_batch(x[step], y[step])
    for ours, own in zip(
        learner.trainable_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(ours, own)


def test_diverged_adjoint_is_named_forgotten_and_learns_nothing():
    # A concave inner objective: q doubles with each step or so.
    learner = hs.BilevelModel(
        make_model(hs.regularizers.LearnableL2(0.02, max_value=2.0)), seed=5
    )
    learner.compile(
        optimizer=hs.SGLD(0.3),
        loss=lambda y, z: -0.5 * tf.reduce_sum(z**2, -1) + 1e-3 * z[:, 0] ** 4,
        outer_loss=loss(),
        hypergradient=hs.estimators.AdjointSGLD(20, 5),
        max_skipped_updates=1,  # the weights go on, and diverge in the next
    )
    before = [v.numpy() for v in learner.hyperparameters]
    with pytest.raises(RuntimeError, match="the adjoint q of `AdjointSGLD`"):
        fit(learner, 3)
    for now, then in zip(learner.hyperparameters, before, strict=True):
        np.testing.assert_array_equal(now, then)
    for variable in learner.outer_level.kept_copies.values:
        assert not np.any(variable.numpy())


def test_gauss_newton_goes_through_the_output_of_a_model():
    # A network of one layer bends nowhere: the two matrices are the same.
    def hypergradient_norm(curvature):
        keras.utils.set_random_seed(2)
        model = keras.Sequential(
            [
                keras.Input((6,)),
                keras.layers.Dense(
                    2,
                    kernel_regularizer=hs.regularizers.LearnableL2(
                        0.02, max_value=2.0
                    ),
                ),
            ]
        )
        learner = hs.BilevelModel(model, seed=5)
        learner.compile(
            optimizer=hs.SGLD(0.1),
            loss=loss(),
            hypergradient=hs.estimators.AdjointSGLD(3, 2, curvature=curvature),
        )
        fit(learner, 1)
        return float(learner.get_metrics_result()["hypergradient_norm"])

    exact, other = map(hypergradient_norm, ("hessian", "gauss_newton"))
    assert exact > 0
    np.testing.assert_allclose(exact, other, rtol=1e-4)


def test_memory_estimate_counts_the_state_of_the_sampler():
    def estimate(optimizer):
        model = make_model(hs.regularizers.LearnableL2(0.02))
        return learn(model, optimizer, epochs=1).memory_estimate()

    plain, adam = estimate("sgd"), estimate("adam")
    size = 4 * (6 * 8 + 8 + 8 * 2 + 2)
    assert adam.weights - plain.weights == 2 * size  # two slots
    assert adam.chain - plain.chain == 4 * size  # before and after a step


@pytest.mark.parametrize(
    "optimizer, error, message",
    [
        (keras.optimizers.Lion(), ValueError, "Received: optimizer=Lion"),
        ("ftrl", ValueError, "Received: optimizer=Ftrl"),
        ("sgd_with_wings", ValueError, "Unknown sampler.*'psgld', 'sgld'"),
        (3, TypeError, "`optimizer` must be a `keras_hposgld.SGLD`"),
    ],
)
def test_other_optimizers_are_refused_by_name(optimizer, error, message):
    learner = hs.BilevelModel(make_model(hs.regularizers.LearnableL2(0.02)))
    with pytest.raises(error, match=message):
        learner.compile(optimizer=optimizer, loss="mse")


def test_a_step_may_exceed_the_rate_only_where_the_check_knows():
    # PSGLD's preconditioner is at most 3 at the default epsilon.
    model = make_model(hs.regularizers.LearnableL2(0.02, max_value=5.0))
    learner = hs.BilevelModel(model)
    learner.compile(optimizer=hs.SGLD(0.1), loss="mse")
    with pytest.raises(ValueError, match="exceeded by 3, max_value=5.0"):
        learner.compile(optimizer=hs.PSGLD(0.1), loss="mse")
    learner.compile(optimizer=keras.optimizers.Adam(1.0), loss="mse")


@pytest.mark.parametrize("refits", [False, True])
def test_decay_held_fixed_is_that_of_adamw(refits):
    decay = 0.25

    def learnable():
        return hs.regularizers.LearnableWeightDecay(
            decay, granularity="tensor", max_value=1.0
        )

    def adamw(model):
        optimizer = keras.optimizers.AdamW(0.01, weight_decay=decay)
        optimizer.exclude_from_weight_decay(model.trainable_variables[1:])
        return optimizer

    plain = make_model()
    optimizer = adamw(plain)
    if refits:
        learner = learn(make_model(learnable()), keras.optimizers.Adam(0.01))
        keras.utils.set_random_seed(8)
        learner.refit(*make_data(), batch_size=8, epochs=2, verbose=0)
        keras.utils.set_random_seed(8)
        plain = keras.models.clone_model(plain)
        optimizer = adamw(plain)
        plain.compile(optimizer, loss=loss())
        plain.fit(*make_data(), batch_size=8, epochs=2, verbose=0)
    else:
        learner = learn(make_model(learnable()), keras.optimizers.Adam(0.01))
        train_plainly(plain, optimizer, 4)
    for ours, own in zip(
        learner.model.trainable_variables,
        plain.trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(ours, own, rtol=2e-6, atol=1e-7)
    assert not learner.model.losses or float(sum(learner.model.losses)) == 0.0


def test_decay_is_learned_and_lowers_the_outer_loss():
    # Two inputs count and thirty are noise: their weights should decay.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(240, 32)).astype("float32")
    y = (x[:, :1] - x[:, 1:2] + 0.5 * rng.normal(size=(240, 1))).astype(
        "float32"
    )
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(1)])
    learner = hs.BilevelModel(
        model,
        regularizer=hs.regularizers.LearnableWeightDecay(
            0.1, granularity="input", max_value=20.0
        ),
        seed=1,
    )
    learner.compile(
        optimizer=keras.optimizers.Adam(0.02),
        loss="mse",
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    history = learner.fit(
        x[:60],
        y[:60],
        outer_data=(x[60:], y[60:]),
        batch_size=20,
        epochs=60,
        steps_per_epoch=learner.hypergradient.num_steps,
        verbose=0,
    ).history["outer_loss"]
    (values,) = learner.hyperparameter_values().values()
    assert np.mean(values[2:]) > 3 * np.mean(values[:2])
    assert np.mean(history[-5:]) < 0.8 * np.max(history[-50:])


def test_decay_is_refused_where_nothing_would_apply_it():
    model = make_model(hs.regularizers.LearnableWeightDecay(0.1))
    model.compile("adam", loss=loss())
    learning = hs.callbacks.LearnHyperparameters(
        make_data(32, seed=1), chain="apart"
    )
    with pytest.raises(ValueError, match="`LearnableWeightDecay` cannot be le"):
        model.fit(*make_data(), callbacks=[learning], verbose=0)


def test_exported_model_says_that_the_decay_is_left_out():
    model = make_model(hs.regularizers.LearnableWeightDecay(0.1))
    learner = learn(model, "adam", epochs=1)
    with pytest.warns(UserWarning, match="weight decay in the optimizer alone"):
        exported = learner.export()
    assert exported.layers[0].kernel_regularizer is None
