"""`outer_folds`: chains side by side that share the strengths."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import assert_equal
from builders import make_data
from builders import values

import keras_hposgld as hs
from keras_hposgld.data.splits import fold_numbers
from keras_hposgld.training.folds import state_of_chain
from keras_hposgld.training.keras_problem import layer_variables

L = keras.layers
N, SEED = 50, 3
X, Y = make_data(N)


def make_learner(noisy=True, shrinkage=0.0, **arguments):
    """A learner whose chains have state of every kind, if it is noisy."""
    keras.utils.set_random_seed(2)

    def strength():
        return hs.regularizers.LearnableL2(
            0.05, granularity="input", max_value=5.0, shrinkage=shrinkage
        )

    model = keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(5, "tanh", kernel_regularizer=strength()),
            *([L.BatchNormalization(), L.Dropout(0.3)] if noisy else []),
            L.Dense(1, kernel_regularizer=strength()),
        ]
    )
    return hs.BilevelModel(model, seed=SEED, **arguments)


def compiled(learner, **arguments):
    defaults = dict(
        optimizer=hs.SGLD(0.05, momentum=0.5, temperature=1e-3, seed=4),
        loss="mse",
        hypergradient=hs.estimators.AdjointSGLD(1, 2),
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    learner.compile(**(defaults | arguments))
    return learner


def light(**arguments):
    """A learner whose chains have little state, and are soon traced."""
    estimator = hs.estimators.HPOSGLD(1, 2)
    return compiled(
        make_learner(noisy=False, **arguments),
        hypergradient=estimator,
        run_eagerly=True,
    )


FIT = dict(batch_size=8, epochs=2, verbose=0)


def fit(learner, folds=3, **arguments):
    return learner.fit(
        X, Y, **(dict(outer_folds=folds, refit=False) | FIT | arguments)
    )


def fit_apart(number, make, **arguments):
    """A learner for each fold, on the examples that the chain of it has."""
    fold_of = fold_numbers((X, Y), number, "outer_folds", SEED)
    learners = []
    for fold in range(number):
        inner, outer = fold_of != fold, fold_of == fold
        learner = make()
        learner.fit(
            *(X[inner], Y[inner]),
            outer_data=(X[outer], Y[outer]),
            **(FIT | arguments),
        )
        learners.append(learner)
    return learners


def chain_state(learner):
    """The state that a chain goes on from, in the order of the copies."""
    parts = state_of_chain(
        learner.trainable_variables,
        layer_variables(learner.model),
        learner.sampler,
        learner.outer_level.kept,
    )
    return [variable for part in parts.values() for variable in part]


def states_of_folds(learner):
    own = chain_state(learner)
    values = [*own, *learner.fold_copies.values]
    return [values[i : i + len(own)] for i in range(0, len(values), len(own))]


@pytest.mark.parametrize(
    ("start", "run_eagerly"),
    [
        ("continue", True),
        pytest.param("continue", False, marks=pytest.mark.slow),
        pytest.param("initial", False, marks=pytest.mark.slow),
    ],
)
def test_each_fold_trains_as_a_learner_of_its_own(start, run_eagerly):
    # Strengths that stay: so that none depends on the others. 25 + 25 examples,
    # of which batches of 8 go on from pass to pass.
    def make():
        return compiled(
            make_learner(),
            warmup_steps=1000,
            start=start,
            run_eagerly=run_eagerly,
        )

    learner = make()
    fit(learner, 2, outer_batch_size=5)
    found = states_of_folds(learner)
    apart = fit_apart(2, make, outer_batch_size=5)
    assert len(found) == 2
    # In a graph TensorFlow moves constants otherwise, where it sees through
    # the function that is called once a fold.
    close = {} if run_eagerly else dict(rtol=1e-4, atol=1e-6)
    for state, other in zip(found, apart, strict=True):
        assert_equal(state, chain_state(other), **close)
    assert np.abs(found[0][0].numpy() - found[1][0].numpy()).max() > 1e-3


@pytest.mark.parametrize(
    "arguments",
    [
        {"layer_state": "frozen"},
        {"hypergradient": hs.estimators.HPOSGLD(2, 3)},
        pytest.param(
            {"optimizer": "adam", "hypergradient": hs.estimators.RMD(3)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"start": "initial", "hypergradient": hs.estimators.IFTCG(4)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_hypergradient_is_the_mean_over_the_folds(float64, arguments):
    # Plain descent by one step of length 1: the strengths move by minus it.
    def make(run_eagerly=True):
        return compiled(
            make_learner(),
            hyper_optimizer=keras.optimizers.SGD(1.0),
            run_eagerly=run_eagerly,
            **arguments,
        )

    learner = make(run_eagerly=False)
    num_steps = learner.hypergradient.num_steps
    one = dict(epochs=1, steps_per_epoch=num_steps)
    history = fit(learner, 3, **one).history  # of 17, 17 and 16 examples
    apart = fit_apart(3, make, **one)
    for variable, *parts in zip(
        *(other.hyperparameters for other in [learner, *apart]), strict=True
    ):
        mean = np.mean([part.numpy() for part in parts], 0)
        start = make().hyperparameters[0].numpy().flat[0]
        assert np.abs(parts[0].numpy() - parts[1].numpy()).max() > 1e-6
        # The change, to nine digits of it.
        np.testing.assert_allclose(
            variable.numpy() - start, mean - start, rtol=1e-9, atol=1e-13
        )
    for name in ("loss", "outer_loss"):
        logs = [other.history.history[name][0] for other in apart]
        np.testing.assert_allclose(history[name][0], np.mean(logs), rtol=1e-6)


def test_prior_counts_all_examples():
    learner = light(shrinkage=1.0)
    fit(learner, 3, epochs=1)
    assert learner.outer_level.hyperprior.num_examples() == N


@pytest.mark.slow
@pytest.mark.parametrize("compile_to", [{}, {"jit_compile": True}])
def test_compilation_changes_nothing(compile_to):
    learner, eager = [
        compiled(make_learner(noisy=False), **arguments)
        for arguments in (compile_to, {"run_eagerly": True})
    ]
    fit(learner)
    fit(eager)
    close = dict(rtol=1e-4, atol=1e-6)  # sums in another order
    assert_equal(learner.variables, eager.variables, **close)


def cross_validation_loss(x, y, fold_of, strength):
    """Mean of the squared errors of ridge regression on what it left out."""
    losses = []
    for fold in np.unique(fold_of):
        u, v = x[fold_of != fold], y[fold_of != fold]
        matrix = u.T @ u / len(u) + strength * np.eye(u.shape[1])
        weights = np.linalg.solve(matrix, u.T @ v / len(u))
        outer = fold_of == fold
        losses.append(np.mean((x[outer] @ weights - y[outer]) ** 2))
    return np.mean(losses)


@pytest.mark.slow
def test_strength_of_ridge_minimizes_the_cross_validation_loss(float64):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 10))
    y = x[:, :2].sum(1, keepdims=True) + rng.normal(size=(40, 1))
    fold_of = fold_numbers((x, y), 4, "outer_folds", SEED)
    grid = np.geomspace(1e-3, 3.0, 4001)
    losses = [cross_validation_loss(x, y, fold_of, s) for s in grid]
    best = grid[np.argmin(losses)]
    assert grid[500] < best < grid[-500]
    strength = hs.regularizers.LearnableL2(
        0.01, granularity="tensor", max_value=5.0
    )
    layer = L.Dense(1, use_bias=False, kernel_regularizer=strength)
    model = keras.Sequential([keras.Input((10,)), layer])
    learner = hs.BilevelModel(model, seed=SEED)
    rate = keras.optimizers.schedules.CosineDecay(0.1, 300)
    learner.compile(
        optimizer=hs.SGLD(0.1),
        loss="mse",
        hypergradient=hs.estimators.IFTCG(5),
        hyper_optimizer=keras.optimizers.Adam(rate),
    )
    # Batches of all examples, so that nothing is drawn.
    learner.fit(
        *(x, y),
        outer_folds=4,
        batch_size=40,
        epochs=1,
        steps_per_epoch=1500,
        verbose=0,
        refit=False,
    )
    # The loss is flat at its minimum: a strength that is off by 2 percent costs
    # 1e-5 of it. The grid is finer.
    np.testing.assert_allclose(values(learner)[0], best, rtol=0.02)


def by_file(learner, folder):
    learner.save(folder / "learner.keras")
    return keras.models.load_model(folder / "learner.keras")


def by_checkpoint(learner, folder):
    path = tf.train.Checkpoint(learner=learner).save(str(folder / "state"))
    other = compiled(make_learner(outer_folds=3))
    for variable in other.trainable_variables:
        variable.assign(variable + 1.0)
    tf.train.Checkpoint(learner=other).restore(path)
    return other


@pytest.mark.parametrize(
    "way", [by_file, pytest.param(by_checkpoint, marks=pytest.mark.slow)]
)
def test_folds_go_on_from_where_they_were_saved(tmp_path, way):
    learner, whole = [compiled(make_learner(outer_folds=3)) for _ in range(2)]
    fit(learner, None, epochs=1)
    other = way(learner, tmp_path)
    fit(other, None, epochs=1)
    fit(whole, None)
    assert other.outer_folds == 3
    for one, two in zip(
        states_of_folds(whole), states_of_folds(other), strict=True
    ):
        assert_equal(one, two)
    assert_equal(values(whole), values(other))


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_run_that_was_stopped_resumes_from_its_backup(tmp_path):
    whole, first, second = [compiled(make_learner()) for _ in range(3)]
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        fit(first, callbacks=[backup, Interrupt()])
    again = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    history = fit(second, callbacks=[again])
    assert history.epoch == [1]
    fit(whole)
    for one, two in zip(
        states_of_folds(whole), states_of_folds(second), strict=True
    ):
        assert_equal(one, two)
    assert_equal(values(whole), values(second))


def test_it_ends_with_a_refit_and_without_folds():
    learner, other = [light() for _ in range(2)]
    history = learner.fit(X, Y, outer_folds=3, validation_split=0.1, **FIT)
    assert history.refit.epoch == [0, 1]
    assert "val_loss" in history.refit.history
    assert history.refit.params["steps"] == 6  # of 45 examples
    assert not learner.fold_copies.values
    fit(other, validation_split=0.1)
    assert_equal(values(learner), values(other))
    assert len(states_of_folds(other)) == 3


def test_folds_are_those_of_the_last_fit():
    learner = light()
    learner.run_eagerly = False  # so that chains are traced, and traced anew
    for folds in (3, 2):
        fit(learner, folds, epochs=1)
        assert len(states_of_folds(learner)) == folds
    fit(learner, None, outer_split=0.2, epochs=1)
    assert not learner.fold_copies.values


def test_compiled_anew_the_sampler_of_each_fold_begins_anew():
    learner = compiled(make_learner())
    fit(learner, epochs=1)
    kept = [v.numpy() for v in states_of_folds(learner)[1]]
    compiled(learner)
    learner._steps.build(
        learner.data_of_fit(
            (X, Y, None), outer_data=None, outer_split=None, outer_folds=3
        )
    )
    own, second, _ = states_of_folds(learner)
    number = len(learner.trainable_variables)
    assert_equal(second[:-number], kept[:-number])
    assert not any(np.any(v) for v in [*own[-number:], *second[-number:]])


def test_one_fold_that_is_not_finite_stops_all_of_them():
    learner = compiled(make_learner())
    fit(learner, epochs=1)
    weight = states_of_folds(learner)[1][0]
    weight.assign(np.full(weight.shape, np.nan))
    before = [[v.numpy() for v in s] for s in states_of_folds(learner)]
    strengths = values(learner)
    one = dict(epochs=1, steps_per_epoch=3)
    assert fit(learner, **one).history["skipped_updates"] == [1.0]
    assert_equal(values(learner), strengths)
    number = len(learner.trainable_variables)
    for one, two in zip(before, states_of_folds(learner), strict=True):
        assert_equal(one[:number], two[:number])
        # What the estimator remembers is forgotten, in each of them.
        memory = two[-3 * number : -number]
        assert not any(np.any(v.numpy()) for v in memory)


def test_memory_estimate_counts_the_folds():
    estimates = [
        compiled(make_learner(**arguments)).memory_estimate()
        for arguments in ({}, {"outer_folds": 2}, {"outer_folds": 4})
    ]
    plain, two, four = [estimate.total for estimate in estimates]
    # A copy of the state, and one that waits, for each fold but the first.
    assert two > plain and four - plain == 3 * (two - plain)


def test_folds_of_the_constructor_give_way_to_arguments():
    learner = light(outer_folds=3)
    assert hs.BilevelModel.from_config(learner.get_config()).outer_folds == 3
    learner.fit(X, Y, outer_data=(X, Y), **FIT)
    assert not learner.fold_copies.values
    learner.fit(X, Y, refit=False, **FIT)
    assert len(states_of_folds(learner)) == 3
    split = light(outer_split=0.2)
    fit(split, 2)
    assert len(states_of_folds(split)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(outer_data=(X, Y)), "cannot be combined with `outer_data`"),
        (dict(outer_split=0.2), "cannot be combined with `outer_split`"),
        (dict(outer_folds=1), "`outer_folds` must be at least 2"),
        (dict(outer_folds=2.5), "`outer_folds` must be an integer"),
        (dict(outer_folds=N + 1), f"outer_folds={N + 1} and {N} examples"),
    ],
)
def test_what_does_not_go_with_folds_is_refused(arguments, message):
    learner = compiled(make_learner())
    with pytest.raises(ValueError, match=message):
        learner.fit(X, Y, **(dict(outer_folds=3) | arguments))


def test_folds_of_other_than_arrays_are_refused():
    learner = compiled(make_learner())
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    with pytest.raises(ValueError, match="`outer_folds` needs arrays"):
        learner.fit(data, outer_folds=3, refit=False)


def test_folds_with_example_weights_are_refused():
    weights = hs.ExampleWeights(N)
    learner = compiled(make_learner(example_weights=weights))
    with pytest.raises(ValueError, match="combined with `example_weights`"):
        fit(learner)
    with pytest.raises(ValueError, match="combined with `example_weights`"):
        make_learner(example_weights=weights, outer_folds=3)
    with pytest.raises(ValueError, match="combined with `outer_split`"):
        make_learner(outer_split=0.2, outer_folds=3)


def test_folds_on_several_replicas_are_refused(mirrored):
    with mirrored.scope():
        learner = compiled(make_learner())
    with pytest.raises(ValueError, match="combined with several replicas"):
        fit(learner)


def test_file_of_a_learner_without_folds_has_none(tmp_path):
    learner, other = light(), light()
    fit(learner, epochs=1)
    other.fit(X, Y, outer_split=0.2, **FIT)
    other.save_weights(tmp_path / "other.weights.h5")
    learner.load_weights(tmp_path / "other.weights.h5")
    assert not learner.fold_copies.values
    fit(learner, epochs=1)
    assert len(states_of_folds(learner)) == 3
