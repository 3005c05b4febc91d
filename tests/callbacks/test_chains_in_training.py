"""Chains whose steps are those of `fit` itself."""

import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import make_data
from builders import state

import keras_hposgld as hs
from keras_hposgld.callbacks.outer_buffer import OuterBuffer
from keras_hposgld.training import kept_trace
from keras_hposgld.training import step_of_fit

STEPS = 4
E = hs.estimators


def penalty(**arguments):
    defaults = dict(granularity="input", max_value=5.0)
    return hs.regularizers.LearnableL2(0.05, **defaults | arguments)


def make_model(optimizer="adam", regularizer=penalty, noisy=False, **arguments):
    """A small network; a noisy one has dropout and batch normalization."""
    keras.utils.set_random_seed(4)
    strength = regularizer() if regularizer else None
    layers = [keras.layers.Dense(8, "tanh", kernel_regularizer=strength)]
    if noisy:
        layers += [
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
        ]
    last = keras.layers.Dense(1, dtype="float32")
    model = keras.Sequential([keras.Input((6,)), *layers, last])
    model.compile(optimizer, loss="mse", metrics=["mae"], **arguments)
    return model


def make_callback(**arguments):
    defaults = dict(
        outer_data=make_data(16, seed=1),
        estimator=E.HPOSGLD(1, STEPS - 1),
        hyper_optimizer=keras.optimizers.Adam(0.1),
        batch_size=16,
        seed=7,
    )
    return hs.callbacks.LearnHyperparameters(**(defaults | arguments))


def fit(model, *callbacks, **arguments):
    x, y = make_data()
    defaults = dict(batch_size=8, epochs=2, verbose=0)
    return model.fit(x, y, callbacks=list(callbacks), **(defaults | arguments))


def strengths(model):
    return [
        variable.numpy()
        for owner in hs.find_hyperparameters(model)
        for variable in owner.hyperparameter_variables
    ]


def adam_with_all():
    return keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.01, 30),
        weight_decay=0.1,
        clipnorm=0.5,
        use_ema=True,
    )


@pytest.mark.parametrize(
    ("make_optimizer", "arguments", "policy"),
    [
        (adam_with_all, {}, "float32"),
        (keras.optimizers.Adam, {"run_eagerly": True}, "float32"),
        (keras.optimizers.Adam, {"jit_compile": True}, "float32"),
        (keras.optimizers.Adam, {"steps_per_execution": 5}, "float32"),
        (keras.optimizers.Adam, {}, "mixed_bfloat16"),
        (keras.optimizers.Adam, {}, "mixed_float16"),
        (
            lambda: keras.optimizers.Adam(gradient_accumulation_steps=3),
            {},
            "float32",
        ),
    ],
    indirect=["policy"],
)
def test_training_is_what_it_is_without(make_optimizer, arguments, policy):
    # Strengths that do not move leave no trace: in weights, statistics,
    # dropout's generator, optimizer, metrics. To the last bit.
    plain = make_model(make_optimizer(), noisy=True, **arguments)
    expected = fit(plain).history
    model = make_model(make_optimizer(), noisy=True, **arguments)
    callback = make_callback(hyper_optimizer=keras.optimizers.SGD(0.0))
    history = fit(model, callback).history
    assert callback.chain == "training"
    # Gradients that are accumulated, or overflow in float16, are not steps.
    taken = int(step_of_fit.plain(model.optimizer).iterations)
    assert taken <= 24 and int(callback.outer_level.iterations) == taken // 4
    assert_equal(state(model), state(plain))
    for key in expected:
        assert history[key] == expected[key], key


def outer_batches():
    """Outer data that have an order, in batches of 4."""
    data = make_data(28, seed=1)
    return tf.data.Dataset.from_tensor_slices(data).batch(4)


def learn_in_bilevel_model(optimizer, estimator, make=make_model, **arguments):
    """The same by `BilevelModel`, whose chains are held to closed forms."""
    model = make(optimizer, **arguments)
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=optimizer,
        loss="mse",
        hypergradient=estimator,
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    learner.fit(
        *make_data(),
        outer_data=outer_batches(),
        batch_size=8,
        shuffle=False,
        epochs=2,
        verbose=0,
    )
    return strengths(model), model.get_weights()


@pytest.mark.parametrize(
    ("make_optimizer", "estimator"),
    [
        (adam_with_all, E.HPOSGLD(1, STEPS - 1)),
        (lambda: keras.optimizers.SGD(0.05, 0.9, True), E.HPOSGLD(0, STEPS)),
        (
            lambda: keras.optimizers.Nadam(0.01, global_clipnorm=0.3),
            E.AdjointSGLD(1, STEPS - 1),
        ),
        (lambda: hs.SGLD(0.05, 1e-3, seed=3), E.AdjointSGLD(1, STEPS - 1)),
    ],
)
def test_strengths_are_those_of_a_bilevel_model(make_optimizer, estimator):
    expected = learn_in_bilevel_model(make_optimizer(), estimator, noisy=True)
    model = make_model(make_optimizer(), noisy=True)
    before = strengths(model)
    callback = make_callback(
        estimator=copy.deepcopy(estimator), outer_data=outer_batches()
    )
    fit(model, callback, shuffle=False)
    assert np.abs(strengths(model)[0] - before[0]).min() > 0.01
    assert_equal(strengths(model), expected[0], rtol=2e-4, atol=2e-5)
    assert_equal(model.get_weights(), expected[1], rtol=1e-3, atol=1e-5)


def test_outer_gradient_is_taken_once_a_chain():
    # The first steps of a chain go on with that of the chain before.
    taken = []

    class Counted(keras.losses.Loss):
        def call(self, y, y_pred):
            taken.append(1)
            return keras.ops.mean(keras.ops.square(y - y_pred), axis=-1)

    model = make_model(run_eagerly=True)
    estimator = E.HPOSGLD(0, STEPS, outer_every=STEPS)
    fit(model, make_callback(estimator=estimator, outer_loss=Counted()))
    assert len(taken) == 1 + 24 // STEPS  # and one before all


def test_loss_that_is_scaled_gives_the_same_hypergradient():
    learned = []
    for factor in (None, 64.0):
        model = make_model(
            keras.optimizers.Adam(loss_scale_factor=factor, clipnorm=0.3)
        )
        before = strengths(model)[0]
        callback = make_callback(hyper_optimizer=keras.optimizers.SGD(10.0))
        fit(model, callback, shuffle=False)
        learned.append(strengths(model)[0] - before)
    assert np.abs(learned[0]).max() > 1e-3
    np.testing.assert_allclose(learned[1], learned[0], rtol=1e-3, atol=1e-6)


def test_accumulated_gradients_are_those_of_a_larger_batch():
    # Two batches of 8 make one step, as a batch of 16 does.
    learned = []
    for number, size in ((2, 8), (None, 16)):
        optimizer = keras.optimizers.Adam(
            gradient_accumulation_steps=number, clipnorm=0.1
        )
        model = make_model(optimizer)
        fit(model, make_callback(), batch_size=size, epochs=4, shuffle=False)
        learned.append(strengths(model)[0])
    assert np.ptp(learned[1]) > 0.01
    np.testing.assert_allclose(learned[0], learned[1], rtol=1e-4)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_steps_that_overflow_in_float16_are_no_steps(policy):
    # The first scales are so large that Keras leaves their steps out. All
    # batches are alike: learned is what is learned from as many steps.
    def train(scale, steps):
        optimizer = keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.05), initial_scale=scale
        )
        model = make_model(optimizer)
        fit(model, make_callback(), batch_size=96, epochs=steps, shuffle=False)
        return model, int(step_of_fit.plain(model.optimizer).iterations)

    model, taken = train(2.0**20, 24)
    assert 12 < taken < 24
    expected, number = train(2.0**8, taken)
    assert number == taken
    start = strengths(make_model())[0]
    assert np.abs(strengths(model)[0] - start).min() > 0.1
    assert_equal(strengths(model), strengths(expected), rtol=1e-2)


def decay(value=0.3):
    return hs.regularizers.LearnableWeightDecay(
        value, granularity="input", max_value=5.0
    )


@pytest.mark.parametrize("accumulated", [None, 3])
def test_decay_that_is_held_is_that_of_adamw(accumulated):
    arguments = {"gradient_accumulation_steps": accumulated}
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, 4, 0.7)
    plain = make_model(
        keras.optimizers.AdamW(rate, weight_decay=0.3, **arguments),
        regularizer=None,
    )
    (kernel,) = [w for w in plain.layers[0].weights if "kernel" in w.path]
    others = [w for w in plain.weights if w is not kernel]
    plain.optimizer.exclude_from_weight_decay(var_list=others)
    fit(plain)
    model = make_model(
        keras.optimizers.Adam(rate, **arguments), regularizer=decay
    )
    fit(model, make_callback(hyper_optimizer=keras.optimizers.SGD(0.0)))
    weights = [w for w in model.get_weights() if w.shape != (6,)]
    assert_equal(weights, plain.get_weights(), rtol=1e-4, atol=1e-6)


def test_decay_is_learned_as_in_a_bilevel_model():
    estimator = E.HPOSGLD(1, STEPS - 1)
    make = keras.optimizers.Adam
    expected = learn_in_bilevel_model(
        make(0.05), estimator, regularizer=lambda: decay()
    )
    model = make_model(make(0.05), regularizer=decay)
    callback = make_callback(estimator=estimator, outer_data=outer_batches())
    fit(model, callback, shuffle=False)
    assert_equal(strengths(model), expected[0], rtol=2e-4, atol=2e-5)
    # A model that was made without it gets it from outside.
    other = make_model(make(0.05), regularizer=None)
    callback = make_callback(
        estimator=estimator,
        outer_data=outer_batches(),
        regularizer=decay(),
        filter=lambda weight: weight is other.layers[0].kernel,
    )
    fit(other, callback, shuffle=False)
    assert_equal(strengths(other), strengths(model), rtol=1e-6)


def test_constraints_are_differentiated():
    def make(optimizer):
        model = make_model(optimizer)
        for layer in model.layers:
            layer.kernel.constraint = keras.constraints.MaxNorm(0.3)
        return model

    estimator = E.HPOSGLD(1, STEPS - 1)
    expected, _ = learn_in_bilevel_model(
        keras.optimizers.Adam(0.05), estimator, make
    )
    model = make(keras.optimizers.Adam(0.05))
    callback = make_callback(estimator=estimator, outer_data=outer_batches())
    fit(model, callback, shuffle=False)
    assert_equal(strengths(model), expected, rtol=2e-4)
    for layer in model.layers:  # as they were
        assert type(layer.kernel.constraint) is keras.constraints.MaxNorm


@pytest.mark.parametrize(
    ("estimator", "regularizer", "hyper_optimizer"),
    [
        (E.HPOSGLD(0, 4, outer_every=4), decay, keras.optimizers.Adam),
        (E.AdjointSGLD(1, 3), decay, keras.optimizers.Adam),
        # Whose step tells the length of a hypergradient.
        (E.HPOSGLD(1, 3), penalty, keras.optimizers.SGD),
    ],
)
def test_two_replicas_learn_what_one_does(
    mirrored, estimator, regularizer, hyper_optimizer
):
    results = []
    for strategy in (tf.distribute.get_strategy(), mirrored):
        with strategy.scope():
            model = make_model(
                keras.optimizers.Adam(0.05, clipvalue=10.0),
                regularizer=regularizer,
            )
            callback = make_callback(
                estimator=copy.deepcopy(estimator),
                hyper_optimizer=hyper_optimizer(0.1),
            )
            before = strengths(model)[0]
        fit(model, callback, shuffle=False)
        results.append((strengths(model)[0] - before, model.get_weights()))
    (one, one_weights), (two, two_weights) = results
    assert np.ptp(one) > 0.01
    np.testing.assert_allclose(two, one, rtol=2e-3, atol=1e-5)
    assert_equal(two_weights, one_weights, rtol=1e-4, atol=1e-5)


class Killed(Exception):
    pass


class KillAfter(keras.callbacks.Callback):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def on_train_batch_end(self, batch, logs=None):
        self.batches -= 1
        if self.batches == 0:
            raise Killed


@pytest.mark.parametrize(
    "estimator", [E.HPOSGLD(0, 5, outer_every=5), E.AdjointSGLD(2, 3)]
)
def test_killed_run_goes_on_to_the_same_end(tmp_path, estimator):
    def train(folder, kill_after=0):
        model = make_model(keras.optimizers.Adam(0.02), noisy=True)
        callbacks = [
            make_callback(
                estimator=copy.deepcopy(estimator),
                batch_size=4,
                backup_dir=str(tmp_path / folder / "learning"),
            ),
            keras.callbacks.BackupAndRestore(str(tmp_path / folder / "model")),
        ]
        if kill_after:
            callbacks.append(KillAfter(kill_after))
        try:
            fit(model, *callbacks, epochs=4, shuffle=False)
        except Killed:
            assert kill_after
        return model

    expected = train("whole")
    train("parts", kill_after=31)  # in the third epoch, and within a chain
    model = train("parts")
    assert_equal(strengths(model), strengths(expected))
    assert_equal(state(model), state(expected))


def test_fit_that_was_broken_off_does_not_learn_on():
    model = make_model()
    callback = make_callback()
    with pytest.raises(Killed):
        fit(model, callback, KillAfter(6))
    learned = strengths(model)
    fit(model, epochs=3)  # without the callback
    assert_equal(strengths(model), learned)
    # The callback may be used again, and another one in its place.
    for other in (callback, make_callback()):
        fit(model, other)
        assert "train_step" not in vars(model)
        assert "apply" not in vars(model.optimizer)
        assert np.abs(strengths(model)[0] - learned[0]).min() > 1e-3
        learned = strengths(model)


def test_model_that_is_compiled_again_learns_by_its_new_optimizer():
    # From Adam, whose steps have other scales and a momentum, to SGD.
    learned = []
    for first in (keras.optimizers.Adam(0.0), keras.optimizers.SGD(0.0)):
        model = make_model(first)
        callback = make_callback(hyper_optimizer=keras.optimizers.SGD(1.0))
        fit(model, callback, epochs=1)
        before = strengths(model)[0]
        model.compile(keras.optimizers.SGD(0.05), loss="mse")
        fit(model, callback, epochs=1, shuffle=False)
        learned.append(strengths(model)[0] - before)
    assert np.abs(learned[1]).min() > 1e-4
    np.testing.assert_allclose(learned[0], learned[1], rtol=1e-3)


@pytest.mark.parametrize("chain", ["training", "apart"])
def test_steps_are_traced_for_the_first_fit_alone(chain, monkeypatch):
    # Each trace would stay in memory. After `compile` there is another one.
    def run():
        traced = []

        class Loss(keras.losses.Loss):
            def call(self, y, y_pred):
                traced.append(self.name)
                return (y - y_pred) ** (2 if self.name == "first" else 4)

        model = make_model()
        model.compile("adam", loss=Loss("first"))
        callback = make_callback(chain=chain, every=STEPS)
        counts = []
        for _ in range(3):
            fit(model, callback)
            counts.append(len(traced))
        model.compile(model.optimizer, loss=Loss("second"))
        ends = [fit(model, callback).history["outer_loss"] for _ in range(2)]
        return counts, traced, strengths(model), ends

    counts, traced, learned, ends = run()
    recorded = 0 if chain == "training" else (counts[2] - counts[1])
    assert counts[1] - counts[0] == recorded < counts[0]
    assert traced[-1] == "second"
    monkeypatch.setattr(
        kept_trace.KeptTrace, "get", lambda self, depends_on, make: make()
    )
    others, _, expected, other_ends = run()
    assert others[1] - others[0] > recorded
    assert ends == other_ends
    for a, b in zip(learned, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_buffer_grows_with_the_steps_of_a_call(monkeypatch):
    # In a second fit, with the same callback and optimizer.
    def run():
        model, callback = make_model(), make_callback(batch_size=3)
        fit(model, callback, epochs=1)
        model.compile(
            model.optimizer, loss="mse", steps_per_execution=3 * STEPS
        )
        fit(model, callback, epochs=1)
        return strengths(model)

    found = run()
    monkeypatch.setattr(OuterBuffer, "serves", lambda self, *arguments: False)
    for a, b in zip(found, run(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_chains_are_counted_by_the_steps_that_are_taken():
    # 12 batches of an epoch are 3 steps: the chain of 4 ends in the second.
    optimizer = keras.optimizers.Adam(gradient_accumulation_steps=4)
    model = make_model(optimizer)
    history = fit(model, make_callback()).history
    assert np.isnan(history["outer_loss"]).tolist() == [True, False]


def test_chain_that_rests_in_between_starts_from_the_weights_of_then():
    # `every=6` with chains of 4: two steps of rest, and four of chain.
    class Record(keras.callbacks.Callback):
        learned = []

        def on_train_batch_end(self, batch, logs=None):
            self.learned.append(strengths(self.model)[0])

    record = Record()
    model = make_model()
    callback = make_callback(every=6, warmup_batches=10)
    fit(model, record, callback)
    changes = np.abs(np.diff(np.array(record.learned), axis=0)).max(axis=1)
    # Seen by a callback before ours: after step 12, 18 and 24.
    assert np.flatnonzero(changes).tolist() == [10, 16, 22]
    assert int(callback.outer_level.iterations) == 4


def test_what_cannot_be_in_the_training_runs_apart_or_is_refused():
    class OwnStep(keras.Sequential):
        def train_step(self, data):
            return super().train_step(data)

    own = OwnStep(
        [
            keras.Input((6,)),
            keras.layers.Dense(1, kernel_regularizer=penalty()),
        ]
    )
    own.compile("adam", loss="mse")
    callback = make_callback(estimator=None, every=5, batch_size=4)
    assert callback.chain == "training"
    fit(own, callback)
    assert callback.chain == "apart"
    with pytest.raises(ValueError, match="`train_step` of its own"):
        fit(own, make_callback(chain="training"))

    model = make_model(keras.optimizers.Lion(1e-3))
    callback = make_callback(estimator=None, every=3, batch_size=4)
    fit(model, callback)
    assert callback.chain == "apart"
    with pytest.raises(ValueError, match="Lion"):
        fit(model, make_callback(chain="training"))

    for arguments, message in (
        ({"sampler": hs.SGLD(0.1)}, "`sampler` is for chains apart"),
        ({"inner_data": make_data()}, "`inner_data` is for chains apart"),
        ({"layer_state": "frozen"}, "carried"),
        ({"estimator": "rmd"}, "looks back"),
        ({"every": 3}, "does not end every 3 steps"),
    ):
        with pytest.raises(ValueError, match=message):
            make_callback(chain="training", **arguments)
        assert make_callback(**arguments).chain == "apart"
    with pytest.raises(ValueError, match="`chain` must be"):
        make_callback(chain="beside")


def test_only_one_callback_learns_from_the_steps():
    model = make_model()
    with pytest.raises(ValueError, match="Only one callback"):
        fit(model, make_callback(), make_callback())
    fit(model, make_callback())  # which the error did not spoil


def sentences(lengths, seed):
    rng = np.random.default_rng(seed)
    while True:
        for length in lengths:
            x = rng.integers(1, 9, size=(8, length))
            yield x, x.mean(axis=1, keepdims=True).astype("float32")


@pytest.mark.parametrize("steps_per_execution", [1, 7])
def test_outer_batches_may_be_of_any_length_and_never_end(steps_per_execution):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            keras.layers.Embedding(10, 4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1, kernel_regularizer=penalty()),
        ]
    )
    model.compile("adam", loss="mse", steps_per_execution=steps_per_execution)
    seen = []

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(logs["outer_loss"])

    callback = make_callback(outer_data=sentences([3, 5, 2, 7, 4], 1))
    model.fit(
        sentences([4, 6, 5], 0),
        steps_per_epoch=14,
        shuffle=False,
        epochs=2,
        verbose=0,
        callbacks=[callback, Count()],
    )
    assert int(callback.outer_level.iterations) == 7
    assert np.all(np.isfinite(seen)) and seen[1] < seen[0]


def test_outer_data_that_end_are_named():
    def few():
        for batch, _ in zip(sentences([3], 1), range(5), strict=False):
            yield batch

    x, y = make_data()

    def examples():
        for _ in range(9):
            yield x[:16], y[:16]

    model = make_model()
    with pytest.raises(RuntimeError, match="`outer_data` must last"):
        fit(model, make_callback(outer_data=examples()), epochs=9)


def test_numbers_that_are_not_finite_stop_the_fit():
    x, y = make_data(16, seed=1)
    y[3] = np.nan
    model = make_model()
    callback = make_callback(outer_data=(x, y), max_skipped_updates=3)
    before = strengths(model)
    with pytest.raises(RuntimeError, match="the outer objective"):
        fit(model, callback)
    assert_equal(strengths(model), before)
