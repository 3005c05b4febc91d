"""Fresh weights under learned hyperparameters, in plain Keras training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import make_data
from builders import values

import keras_hposgld as hs
from keras_hposgld.training.learning_step import LearningStep
from keras_hposgld.training.refit import fresh_copy

L = keras.layers
R = hs.regularizers
DECAY = 2.5


def decay(**arguments):
    defaults = dict(granularity="tensor", max_value=20.0)
    return R.LearnableWeightDecay(DECAY, **(defaults | arguments))


def make_model(optimizer="adam", regularizer=decay, noisy=False, **arguments):
    """Two dense layers with seeds; a noisy model has layers with a state."""

    def dense(units, seed, **others):
        start = keras.initializers.GlorotUniform(seed)
        return L.Dense(units, kernel_initializer=start, **others)

    strength = regularizer() if regularizer else None
    model = keras.Sequential(
        [
            keras.Input((6,)),
            dense(5, 1, kernel_regularizer=strength, activation="tanh"),
            *([L.BatchNormalization()] if noisy else []),
            *([dense(5, 2, trainable=False)] if noisy else []),
            *([L.Dropout(0.2, seed=4)] if noisy else []),
            dense(1, 3, dtype="float32"),
        ]
    )
    model.compile(optimizer, loss="mse", metrics=["mae"], **arguments)
    return model


def learn(model, epochs=2):
    """What comes before a refit: learning by the callback."""
    callback = hs.callbacks.LearnHyperparameters(
        make_data(16, seed=1),
        hyper_optimizer=keras.optimizers.Adam(0.1),
        batch_size=16,
        seed=7,
    )
    arguments = dict(batch_size=8, epochs=epochs, verbose=0)
    model.fit(*make_data(32), callbacks=[callback], **arguments)
    return model


def steps():
    # Of other schedules TensorFlow moves the constants of its graph to the
    # constant decay of AdamW, which costs a bit.
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [5, 17], [0.02, 0.05, 0.01]
    )


FIT = dict(batch_size=8, epochs=3, shuffle=False, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "compiled", "policy"),
    [
        ({}, {}, "float32"),
        ({"clipnorm": 0.3, "use_ema": True}, {}, "float32"),
        (
            {"gradient_accumulation_steps": 3, "learning_rate": steps},
            {},
            "float32",
        ),
        ({}, {"jit_compile": True}, "float32"),
        ({"learning_rate": steps}, {"steps_per_execution": 5}, "float32"),
        ({"learning_rate": steps}, {}, "mixed_float16"),
        ({"gradient_accumulation_steps": 3}, {}, "mixed_float16"),
        ({}, {}, "mixed_bfloat16"),
    ],
    indirect=["policy"],
)
def test_learned_decay_is_that_of_adamw_to_the_last_bit(
    arguments, compiled, policy
):
    def make(kind, **others):
        own = {"learning_rate": 0.02} | arguments | others
        if own["learning_rate"] is steps:
            own["learning_rate"] = steps()
        return kind(**own)

    model = make_model(make(keras.optimizers.Adam), **compiled)
    x, y = make_data()
    if policy == "mixed_float16":
        x[10:20] *= 1e4  # so that gradients overflow, and some do not
    model.fit(x[:8], y[:8], epochs=4, verbose=0)
    (learned,) = values(model)
    history = hs.refit(model, x, y, **FIT).history

    adamw = make(keras.optimizers.AdamW, weight_decay=float(learned))
    plain = make_model(adamw, regularizer=None, **compiled)
    adamw.exclude_from_weight_decay(plain.trainable_variables[1:])
    expected = plain.fit(x, y, **FIT).history
    if policy == "mixed_float16":
        assert adamw.iterations != 36  # some have been left out
    # XLA adds in another order where a factor is constant.
    close = dict(rtol=1e-4, atol=1e-7) if compiled.get("jit_compile") else {}
    assert_equal(model.trainable_variables, plain.trainable_variables, **close)
    assert_equal(model.optimizer.variables, plain.optimizer.variables, **close)
    assert close or history == expected
    if arguments or compiled or policy != "float32":
        return
    # It held the weights together: without it they are others.
    none = make_model(make(keras.optimizers.Adam), regularizer=None, **compiled)
    none.fit(x, y, **FIT)
    kernels = [np.asarray(m.trainable_variables[0]) for m in (plain, none)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3


def test_penalties_are_those_of_the_learned_strengths():
    def penalty():
        return R.LearnableL2(0.05, granularity="input", max_value=5.0)

    model = learn(make_model(regularizer=penalty), epochs=3)
    learned = values(model)
    assert np.std(learned) > 1e-3
    hs.refit(model, *make_data(), **FIT)
    assert_equal(values(model), learned)
    other = make_model(regularizer=penalty)
    hs.copy_hyperparameters(model, other)
    other.fit(*make_data(), **FIT)
    assert_equal(model.trainable_variables, other.trainable_variables)


def test_model_keeps_its_identity_and_what_is_not_trained():
    model = learn(make_model(noisy=True))
    weights, optimizer = list(model.weights), model.optimizer
    frozen = model.layers[2]
    kept = [weight.numpy() for weight in frozen.weights]
    before = [weight.numpy() for weight in model.trainable_variables]
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(self.model)
            seen.extend(model.layers[1].moving_mean.numpy())

    statistics = model.layers[1].moving_mean.numpy()
    history = hs.refit(model, *make_data(), callbacks=[See()], **FIT)
    assert seen[0] is model
    assert_equal(seen[1:], statistics)
    assert set(history.history) == {"loss", "mae"}
    assert model.optimizer is optimizer
    assert all(a is b for a, b in zip(model.weights, weights, strict=True))
    assert_equal(frozen.weights, kept)
    for old, new in zip(before, model.trainable_variables, strict=True):
        assert np.all(old != new)
    assert optimizer.iterations == 36
    # What is plain stays plain: the next `fit` knows of no decay.
    plain = make_model(noisy=True, regularizer=None)
    shown = [v for v in model.variables if "decay" not in v.path]
    for own, other in zip(shown, plain.variables, strict=True):
        other.assign(own)
    plain.optimizer.build(plain.trainable_variables)
    for own, other in zip(
        optimizer.variables, plain.optimizer.variables, strict=True
    ):
        other.assign(own)
    for trained in (model, plain):
        trained.fit(*make_data(), **FIT)
    assert_equal(model.trainable_variables, plain.trainable_variables)


class Stop(keras.callbacks.Callback):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise self.error


@pytest.mark.parametrize("optimizer", [None, "sgd"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("full")])
def test_model_is_as_before_if_the_training_fails(error, optimizer):
    model, other = learn(make_model(noisy=True)), make_model(noisy=True)
    own = model.optimizer
    variables = [*model.variables, *own.variables]
    before = [np.array(variable.numpy()) for variable in variables]
    with pytest.raises(type(error)):
        hs.refit(
            model,
            *make_data(),
            callbacks=[Stop(error)],
            hyperparameters_from=other,
            optimizer=optimizer,
            verbose=0,
        )
    assert_equal(variables, before)
    assert model.optimizer is own and "apply" not in vars(own)
    # It goes on as if nothing had been.
    learn(model)


def test_hyperparameters_come_from_another_model():
    learner = hs.BilevelModel(make_model(), seed=2)
    learner.compile(optimizer=hs.SGLD(0.02), loss="mse")
    x, y = make_data()
    learner.fit(x, y, outer_split=0.5, epochs=3, verbose=0)
    for source in (learner, learner.model):
        model = make_model("sgd")
        hs.refit(model, x, y, hyperparameters_from=source, verbose=0)
        assert_equal(values(model), values(learner))
    # And into a learner, whose own `refit` is called.
    target = hs.BilevelModel(make_model())
    target.compile(optimizer=hs.SGLD(0.02), loss="mse")
    before = int(target.optimizer.iterations)
    hs.refit(target, x, y, hyperparameters_from=learner, **FIT)
    assert_equal(values(target), values(learner))
    learner.refit(x, y, **FIT)
    assert_equal(target.trainable_variables, learner.trainable_variables)
    assert int(target.optimizer.iterations) == before == 0
    with pytest.raises(ValueError, match="has no partner"):
        hs.refit(make_model(), x, y, hyperparameters_from=make_other())


def test_learner_around_a_model_that_was_trained_before_is_refit():
    make_model()  # so that the layers of the next one have other names
    model = make_model()
    model.fit(*make_data(), verbose=0)
    learner = hs.BilevelModel(model)
    learner.compile(optimizer=hs.SGLD(0.02), loss="mse")
    before = values(model)
    learner.refit(*make_data(), **FIT)
    assert_equal(values(model), before)


def make_other():
    return make_model(regularizer=R.LearnableL2)


def test_training_starts_at_the_center():
    model = make_model(regularizer=lambda: decay(center="initial"))
    (owner,) = hs.find_hyperparameters(model)
    center = owner.penalties[0].center.numpy()
    model.trainable_variables[0].assign(center + 1.0)
    hs.refit(model, *make_data(), optimizer=keras.optimizers.SGD(0.0), **FIT)
    assert_equal(model.trainable_variables[:1], [center])


def test_another_optimizer_trains_and_leaves_the_own_at_its_start():
    model = learn(make_model())
    own = model.optimizer
    given = keras.optimizers.SGD(0.05)
    hs.refit(model, *make_data(), optimizer=given, **FIT)
    other = make_model(keras.optimizers.SGD(0.05))
    hs.refit(other, *make_data(), hyperparameters_from=model, **FIT)
    assert_equal(model.trainable_variables, other.trainable_variables)
    assert given.iterations == 36 and own.iterations == 0
    assert model.optimizer is own
    for variable in own.variables[2:]:
        assert not np.any(variable)
    # `None` is its own, as is itself.
    hs.refit(model, *make_data(), optimizer=own, **FIT)
    weights = [weight.numpy() for weight in model.trainable_variables]
    hs.refit(model, *make_data(), **FIT)
    assert_equal(model.trainable_variables, weights)


@pytest.mark.parametrize("policy", ["mixed_float16"], indirect=True)
def test_another_optimizer_scales_the_loss_as_the_own_does(policy):
    model = make_model()
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(type(self.model.optimizer))

    hs.refit(model, *make_data(), optimizer="sgd", callbacks=[See()], **FIT)
    assert seen == [keras.optimizers.LossScaleOptimizer]


def test_step_of_the_users_own_may_apply_gradients_part_by_part():
    class ByParts(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            weights = self.trainable_variables
            gradients = tape.gradient(loss, weights)
            if not self.optimizer.built:
                self.optimizer.build(weights)
            for part in (slice(1), slice(1, None)):
                self.optimizer.apply(gradients[part], weights[part])
            return {"loss": loss}

    def make(regularizer, optimizer):
        inputs = keras.Input((6,))
        start = keras.initializers.GlorotUniform(1)
        outputs = L.Dense(
            1, kernel_initializer=start, kernel_regularizer=regularizer
        )(inputs)
        model = ByParts(inputs, outputs)
        model.compile(optimizer, loss="mse")
        return model

    model = make(decay(), keras.optimizers.SGD(0.02))
    hs.refit(model, *make_data(), **FIT)
    (learned,) = values(model)
    sgd = keras.optimizers.SGD(0.02, weight_decay=float(learned))
    plain = make(None, sgd)
    sgd.exclude_from_weight_decay(plain.trainable_variables[1:])
    plain.fit(*make_data(), **FIT)
    assert_equal(model.trainable_variables, plain.trainable_variables)


def test_step_of_a_fit_that_was_broken_off_is_removed():
    model = learn(make_model())
    with pytest.raises(OSError):
        learn_and_fail(model)
    assert isinstance(vars(model)["train_step"], LearningStep)
    learned = values(model)
    hs.refit(model, *make_data(), **FIT)
    assert_equal(values(model), learned)
    other = make_model()
    hs.refit(other, *make_data(), hyperparameters_from=model, **FIT)
    assert_equal(model.trainable_variables, other.trainable_variables)


def learn_and_fail(model):
    callback = hs.callbacks.LearnHyperparameters(make_data(16, seed=1))
    model.fit(
        *make_data(),
        callbacks=[callback, Stop(OSError("full"))],
        batch_size=8,
        verbose=0,
    )


def test_fresh_copy_has_what_layers_have_learned():
    affine = hs.layers.LearnableAffine(rotation=10.0)
    model = keras.Sequential([keras.Input((6, 6, 1)), affine, L.Flatten()])
    model.add(L.Dense(2))
    affine.ranges["rotation"].assign(0.5)
    copy = fresh_copy(model)
    assert_equal(values(copy), values(model))
    assert float(copy.layers[0].ranges["rotation"]) == 0.5


def test_two_replicas_train_as_one(mirrored):
    one = make_model()
    hs.refit(one, *make_data(), **FIT)
    with mirrored.scope():
        two = make_model()
    hs.refit(two, *make_data(), hyperparameters_from=one, **FIT)
    (strength,) = hs.find_hyperparameters(two)[0].hyperparameter_variables
    assert strength.value.distribute_strategy is mirrored  # can be learned
    assert_equal(
        two.trainable_variables, one.trainable_variables, rtol=1e-4, atol=1e-6
    )


def used():
    optimizer = keras.optimizers.SGD()
    optimizer.build([keras.Variable(1.0)])
    return optimizer


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (lambda: 5, {}, TypeError, "`model` must be a plain `keras.Model`"),
        (
            lambda: hs.MetaModel(make_model()),
            {},
            TypeError,
            "or a `BilevelModel`. Received: model=<MetaModel",
        ),
        (
            lambda: keras.Sequential([keras.Input((6,)), L.Dense(1)]),
            {},
            RuntimeError,
            r"`compile\(...\)` must be called before `refit`",
        ),
        (
            lambda: hs.BilevelModel(make_model()),
            {},
            RuntimeError,
            r"`compile\(...\)` must be called before `refit`",
        ),
        (
            lambda: make_model(regularizer=None),
            {},
            ValueError,
            "must have hyperparameters that were learned.*regularizer=",
        ),
        (
            make_model,
            {"optimizer": used()},
            ValueError,
            "`optimizer` must be one that has trained nothing yet",
        ),
        (
            make_model,
            {"callbacks": [hs.callbacks.LearnHyperparameters(make_data())]},
            ValueError,
            "`callbacks` must not learn",
        ),
    ],
)
def test_what_cannot_be_refit_is_refused(make, arguments, error, message):
    with pytest.raises(error, match=message):
        hs.refit(make(), *make_data(), **arguments)


def test_model_that_is_not_built_is_refused():
    model = keras.Sequential([L.Dense(1, kernel_regularizer=decay())])
    model.compile("adam", loss="mse")
    with pytest.raises(ValueError, match="`model` must be built"):
        hs.refit(model, *make_data())
