"""State that the first use shapes, met by other weights, data or models."""

import copy
import gc
import pickle
import weakref

import keras
import numpy as np
import pytest

import keras_hposgld as hs

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 4)).astype("float32")
Y = RNG.normal(size=(24, 4)).astype("float32")


def make_model(units=(4, 4)):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((4,))]
        + [
            L.Dense(
                n,
                use_bias=False,
                kernel_regularizer=hs.regularizers.LearnableL2(
                    0.1, max_value=2.0
                ),
                name=f"layer_{number}",
            )
            for number, n in enumerate(units)
        ]
    )


def fit(learner, **arguments):
    return learner.fit(
        *(X[:16], Y[:16]),
        outer_data=(X[16:], Y[16:]),
        batch_size=4,
        verbose=0,
        **arguments,
    )


def learn_with(callback, model, x=X, y=Y, **arguments):
    return model.fit(
        x, y, batch_size=4, verbose=0, callbacks=[callback], **arguments
    )


def callback(**arguments):
    defaults = dict(
        estimator=hs.estimators.HPOSGLD(1, 1), every=2, batch_size=2, seed=0
    )
    return hs.callbacks.LearnHyperparameters((X, Y), **(defaults | arguments))


# A learner whose layers are frozen and freed.


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("estimator", ["adjoint_sgld", "hpo_sgld", "ift_cg"])
def test_two_stages_equal_two_learners(estimator, eagerly):
    def compile_(learner):
        learner.compile(
            hs.SGLD(0.05, momentum=0.5, seed=0),
            loss="mse",
            hypergradient=estimator,
            run_eagerly=eagerly,
        )

    model = make_model()
    learner = hs.BilevelModel(model, seed=0)
    model.layers[0].trainable = False
    compile_(learner)
    fit(learner, steps_per_epoch=learner.hypergradient.num_steps)
    model.layers[0].trainable = True
    twin = make_model()
    weights = [w.numpy() for w in model.weights if "kernel" == w.name]
    for layer, weight in zip(twin.layers, weights, strict=True):
        layer.kernel.assign(weight)
    other = hs.BilevelModel(twin, seed=0)
    other.find_hyperparameters()
    (strength,) = model.layers[1].kernel.regularizer.strengths.values()
    (new,) = twin.layers[1].kernel.regularizer.strengths.values()
    new.assign(strength)
    other.outer_level.iterations.assign(1)  # so the data go on as well
    compile_(learner)
    compile_(other)
    for stage in (learner, other):
        stage.outer_level.kept_copies.forget_if(1.0)
        fit(stage, steps_per_epoch=2 * stage.hypergradient.num_steps)
    for a, b in zip(
        model.trainable_variables, twin.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=a.path)
    for a, b in zip(
        learner.hyperparameters, other.hyperparameters, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=a.path)
    assert len(learner.hyperparameters) == 2


def test_starting_weights_are_those_of_their_layers():
    model = make_model((4, 4, 4))
    first, second, third = (layer.kernel for layer in model.layers)
    learner = hs.BilevelModel(model)

    def stage(frozen):
        for number, layer in enumerate(model.layers):
            layer.trainable = number != frozen
        learner.compile(hs.SGLD(0.05), loss="mse", start="initial")
        before = first.numpy(), second.numpy(), third.numpy()
        fit(learner)
        names = learner.starting_weights.names
        values = learner.starting_weights.values
        return before, dict(zip(names, map(np.asarray, values), strict=True))

    (a, _, c), starts = stage(frozen=1)
    np.testing.assert_array_equal(starts["layers/dense/kernel"], a)
    np.testing.assert_array_equal(starts["layers/dense_2/kernel"], c)
    (later, b, _), starts = stage(frozen=2)
    assert np.any(later != a)
    # The first layer starts where it did; the second where it is now.
    np.testing.assert_array_equal(starts["layers/dense/kernel"], a)
    np.testing.assert_array_equal(starts["layers/dense_1/kernel"], b)
    assert len(starts) == 2


def test_other_weights_without_compile_are_refused():
    model = make_model()
    learner = hs.BilevelModel(model)
    learner.compile(hs.SGLD(0.05), loss="mse")
    fit(learner)
    model.layers[0].trainable = False
    with pytest.raises(ValueError, match="`optimizer` was built for other"):
        fit(learner)
    with pytest.raises(ValueError, match="`hyper_optimizer` was built for"):
        learner.compile(
            hs.SGLD(0.05), loss="mse", hyper_optimizer=learner.hyper_optimizer
        )
    learner.compile(hs.SGLD(0.05), loss="mse")
    fit(learner)


@pytest.mark.parametrize("start", ["continue", "initial"])
def test_what_is_kept_by_place_is_saved_by_place(tmp_path, start):
    def make():
        learner = hs.BilevelModel(make_model(), seed=0)
        learner.compile(
            hs.SGLD(0.05, seed=0),
            loss="mse",
            hypergradient="adjoint_sgld",
            start=start,
        )
        return learner

    learner = make()
    fit(learner)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    fit(learner)
    fit(loaded)
    for a, b in zip(learner.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


# A failure of the outer level alone.


@pytest.mark.parametrize("level", ["inner", "outer"])
def test_outer_failure_leaves_the_progress_of_the_weights(level):
    model = make_model()
    learner = hs.BilevelModel(model)
    learner.compile(hs.SGLD(0.05), loss="mse", max_skipped_updates=99)
    bad = np.full_like(Y[16:], np.nan)
    before = [w.numpy() for w in model.weights]
    x, y = X[:16], Y[:16]
    history = learner.fit(
        x,
        y if level == "outer" else y * np.nan,
        outer_data=(X[16:], bad if level == "outer" else Y[16:]),
        batch_size=4,
        steps_per_epoch=3 * learner.hypergradient.num_steps,
        verbose=0,
    )
    assert history.history["skipped_updates"] == [3.0]
    moved = [
        np.any(w.numpy() != old)
        for w, old in zip(model.weights, before, strict=True)
        if w.name == "kernel"
    ]
    assert moved == [level == "outer"] * 2
    for value in learner.hyperparameter_values().values():
        np.testing.assert_allclose(value, 0.1, rtol=1e-6)


# A callback, used again or copied.


def test_callback_goes_on_with_the_same_model():
    model, learning = make_model(), callback()
    model.compile("adam", "mse")
    learn_with(learning, model)
    chains = int(learning.outer_level.iterations)
    optimizer = learning.outer_level.hyper_optimizer
    assert chains == 3
    learn_with(learning, model)
    assert learning.outer_level.hyper_optimizer is optimizer
    assert int(learning.outer_level.iterations) == 2 * chains


@pytest.mark.parametrize("change", ["model", "weights", "data"])
def test_callback_meets_what_it_was_not_made_for(change):
    learning = callback(hyper_optimizer=keras.optimizers.Adam(0.1))
    model = make_model()
    model.compile("adam", "mse")
    learn_with(learning, model)
    arguments = {}
    if change == "model":
        model = make_model((3, 4))
    elif change == "weights":
        model.layers[0].trainable = False
    else:
        arguments = {"sample_weight": np.ones(len(X))}
    model.compile("adam", "mse")
    history = learn_with(learning, model, **arguments).history
    assert np.isfinite(history["outer_loss"]).all()
    owned = hs.find_hyperparameters(model)
    assert len(learning.hyperparameters) == len(owned)
    for value in learning.hyperparameter_values().values():
        assert np.any(value != np.float32(0.1))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, "pickle"])
def test_callback_can_be_copied(copied):
    regularizer = hs.regularizers.LearnableL2(0.1)
    original = callback(
        regularizer=regularizer,
        sampler=hs.SGLD(0.02, seed=3),
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    if copied == "pickle":
        twin = pickle.loads(pickle.dumps(original))
    else:
        twin = copied(original)
    results = []
    for learning in (original, twin):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((4,)), L.Dense(4)])
        model.compile("adam", "mse")
        learn_with(learning, model, shuffle=False)
        results.append(learning.hyperparameter_values())
    (a,), (b,) = (list(result.values()) for result in results)
    np.testing.assert_array_equal(a, b)
    assert np.any(a != np.float32(0.1))
    assert learning.outer_level is not original.outer_level


def test_two_callbacks_both_learn():
    first, second = callback(chain="apart"), callback(chain="apart")
    model = make_model()
    model.compile("adam", "mse")
    model.fit(X, Y, batch_size=4, verbose=0, callbacks=[first, second])
    assert int(first.outer_level.iterations) == 3
    assert int(second.outer_level.iterations) == 3
    assert "train_step" not in vars(model)
    written = int(first.recent.num_written), int(second.recent.num_written)
    model.fit(X, Y, batch_size=4, verbose=0)
    assert written == (
        int(first.recent.num_written),
        int(second.recent.num_written),
    )


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            raise KeyboardInterrupt


def test_a_fit_that_is_broken_off_can_be_followed_by_any():
    model, learning = make_model(), callback()
    model.compile("adam", "mse")
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[learning, Stop()])
    model.fit(X, Y, sample_weight=np.ones(24), batch_size=4, verbose=0)
    learn_with(learning, model)
    assert "train_step" not in vars(model)


@pytest.mark.parametrize("outside", [False, True])
def test_model_that_fit_has_yet_to_build(outside):
    regularizer = hs.regularizers.LearnableL2(0.1)
    model = keras.Sequential(
        [L.Dense(4, kernel_regularizer=None if outside else regularizer)]
    )
    model.compile("adam", "mse")
    learning = callback(regularizer=regularizer if outside else None)
    learn_with(learning, model)
    (value,) = learning.hyperparameter_values().values()
    assert value.shape == (4, 4) and np.any(value != np.float32(0.1))


def test_no_chain_is_said():
    model = make_model()
    model.compile("adam", "mse")
    with pytest.warns(UserWarning, match="No chain ran.*every=50.*6 batches"):
        learn_with(callback(every=50), model)


@keras.saving.register_keras_serializable(package="test_first_use")
class Loose(L.Layer):
    def build(self, shape):
        self.w = self.add_weight(
            shape=(4,), regularizer=hs.regularizers.LearnableL2(), name="w"
        )

    def call(self, x):
        return x * self.w


def test_strengths_that_are_not_going_to_be_saved_are_named():
    model = keras.Sequential([keras.Input((4,)), Loose()])
    model.compile("adam", "mse")
    with pytest.warns(UserWarning, match="loose/w/l2.*not going to be saved"):
        learn_with(callback(), model)


def test_models_of_earlier_fits_are_not_kept_alive():
    learning = callback()
    ends = []
    for _ in range(3):
        model = make_model()
        model.compile("adam", "mse")
        learn_with(learning, model)
        ends.append(weakref.ref(model))
    del model
    gc.collect()
    assert [end() is None for end in ends[:2]] == [True, True]
