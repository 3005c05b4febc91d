"""Meta-learned initial weights, against closed forms and from the outside."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs

ALPHA = 0.07
NUM_TASKS, NUM_EXAMPLES, NUM_FEATURES = 3, 6, 4


def make_tasks(seed=0, batch_size=NUM_TASKS, num_tasks=NUM_TASKS):
    """Linear regression: support and query of each task, as a dataset."""
    rng = np.random.default_rng(seed)

    def side():
        x = rng.normal(size=(num_tasks, NUM_EXAMPLES, NUM_FEATURES))
        y = rng.normal(size=(num_tasks, NUM_EXAMPLES, 1))
        return x.astype("float32"), y.astype("float32")

    arrays = (side(), side())
    return tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)


def make_meta(estimator=None, *, dropout=0.0, strategy=None, **arguments):
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(1)
        layers = [keras.Input((NUM_FEATURES,)), keras.layers.Dense(1)]
        if dropout:
            layers.insert(1, keras.layers.Dropout(dropout, seed=1))
        meta = hs.MetaModel(keras.Sequential(layers), seed=1)
        # Plain descent with step 1: the weights move by the hypergradient.
        defaults = dict(
            optimizer=hs.SGLD(ALPHA, seed=1),
            hyper_optimizer=keras.optimizers.SGD(1.0),
            loss="mse",
            metrics=["mae"],
        )
        meta.compile(hypergradient=estimator, **(defaults | arguments))
    return meta


def moved_by(meta, tasks):
    """The hypergradient of one outer iteration, as one vector."""
    before = [v.numpy() for v in meta.trainable_variables]
    meta.fit(tasks.take(1), verbose=0)
    return np.concatenate(
        [
            (old - new.numpy()).ravel()
            for old, new in zip(before, meta.trainable_variables, strict=True)
        ]
    )


def quadratics(tasks):
    """Of each task, gradient and Hessian of the mean squared errors."""

    def quadratic(x, y):
        x = np.concatenate([x, np.ones((len(x), 1))], 1).astype("float64")
        hessian = 2 * x.T @ x / len(x)
        linear = 2 * x.T @ y[:, 0] / len(x)
        return (lambda w: hessian @ w - linear), hessian

    (xs, ys), (xq, yq) = next(tasks.as_numpy_iterator())
    return [
        (*quadratic(xs[t], ys[t]), quadratic(xq[t], yq[t])[0])
        for t in range(len(xs))
    ]


def start_of(meta):
    return np.concatenate([v.numpy().ravel() for v in meta.trainable_variables])


def maml(tasks, start, num_steps):
    total = 0.0
    for gradient, hessian, outer in quadratics(tasks):
        w, power = start, np.eye(len(start))
        for _ in range(num_steps):
            w = w - ALPHA * gradient(w)
            power = power @ (np.eye(len(w)) - ALPHA * hessian)
        total = total + outer(w) @ power
    return total / NUM_TASKS


def hpo_sgld(tasks, start, burn_in, num_samples):
    # Equations 22 and 25 with D0 the identity; f is quadratic, so that both
    # ways to treat its curvature are exact.
    total = 0.0
    for gradient, hessian, outer in quadratics(tasks):
        w, u = start, np.zeros(len(start))
        for m in range(1, burn_in + num_samples + 1):
            w = w - ALPHA * gradient(w)
            u = u - ALPHA * outer(w) @ hessian
            if m > burn_in:
                total = total + (outer(w) + u) / num_samples
    return total / NUM_TASKS


def first_order(tasks, start, num_steps):
    total = 0.0
    for gradient, _, outer in quadratics(tasks):
        w = start
        for _ in range(num_steps):
            w = w - ALPHA * gradient(w)
        total = total + outer(w)
    return total / NUM_TASKS


def imaml(tasks, start, proximal):
    total = 0.0
    for gradient, hessian, outer in quadratics(tasks):
        system = hessian + proximal * np.eye(len(start))
        w = start - np.linalg.solve(system, gradient(start))
        total = total + proximal * np.linalg.solve(system, outer(w))
    return total / NUM_TASKS


E = hs.estimators
CASES = {
    "rmd": (E.RMD(num_steps=4), {}, lambda t, w: maml(t, w, 4)),
    "fmd": (E.FMD(num_steps=4), {}, lambda t, w: maml(t, w, 4)),
    "hpo_sgld": (E.HPOSGLD(2, 3), {}, lambda t, w: hpo_sgld(t, w, 2, 3)),
    "telescoped": (
        E.HPOSGLD(1, 4, curvature="telescoped"),
        {},
        lambda t, w: hpo_sgld(t, w, 1, 4),
    ),
    # With one step the paper's recursion leaves nothing out.
    "one_step": (E.HPOSGLD(0, 1), {}, lambda t, w: maml(t, w, 1)),
    "first_order": (
        E.FirstOrder(num_steps=4),
        {},
        lambda t, w: first_order(t, w, 4),
    ),
    "ift_cg": (
        E.IFTCG(max_iterations=20, num_steps=400),
        {"proximal": 0.8},
        lambda t, w: imaml(t, w, 0.8),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_hypergradient_is_the_closed_form(case):
    estimator, arguments, closed_form = CASES[case]
    meta, tasks = make_meta(estimator, **arguments), make_tasks()
    expected = closed_form(tasks, start_of(meta))
    # Float32 throughout: sums of a few dozen terms of order one.
    np.testing.assert_allclose(moved_by(meta, tasks), expected, atol=1e-5)


@pytest.mark.parametrize("mode", [{"run_eagerly": True}, {"jit_compile": True}])
def test_eager_and_compiled_runs_agree(mode):
    tasks = make_tasks()
    plain = moved_by(make_meta(E.HPOSGLD(1, 2)), tasks)
    other = moved_by(make_meta(E.HPOSGLD(1, 2), **mode), tasks)
    np.testing.assert_allclose(other, plain, rtol=1e-5, atol=1e-6)


def test_default_estimator_serves_meta_learning():
    meta, tasks = make_meta(), make_tasks()
    expected = hpo_sgld(tasks, start_of(meta), 0, 5)
    np.testing.assert_allclose(moved_by(meta, tasks), expected, atol=1e-5)


def test_strengths_are_learned_with_the_initial_weights():
    # Reverse and forward differentiation agree on both kinds.
    moved = []
    for estimator in (E.RMD(num_steps=3), E.FMD(num_steps=3)):
        keras.utils.set_random_seed(1)
        strength = hs.regularizers.LearnableL2(0.1, granularity="input")
        model = keras.Sequential(
            [
                keras.Input((NUM_FEATURES,)),
                keras.layers.Dense(1, kernel_regularizer=strength),
            ]
        )
        meta = hs.MetaModel(model)
        meta.compile(
            hs.SGLD(ALPHA),
            loss="mse",
            hypergradient=estimator,
            hyper_optimizer=keras.optimizers.SGD(1.0),
        )
        before = [v.numpy() for v in meta.hyperparameters]
        meta.fit(make_tasks(), verbose=0)
        moved.append(
            [
                new.numpy() - old
                for old, new in zip(before, meta.hyperparameters, strict=True)
            ]
        )
    assert [part.shape for part in moved[0]] == [(4, 1), (1,), (4,)]
    assert np.abs(moved[0][2]).min() > 1e-4
    for one, other in zip(*moved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_adapt_is_plain_descent_and_leaves_the_initial_weights():
    meta, tasks = make_meta(E.HPOSGLD(0, 3)), make_tasks()
    meta.fit(tasks, verbose=0)
    start = start_of(meta)
    (xs, ys), (xq, _) = next(tasks.as_numpy_iterator())
    gradient, *_ = quadratics(tasks)[1]
    for num_steps in (None, 0, 7):
        adapted = meta.adapt(xs[1], ys[1], num_steps=num_steps)
        w = start
        for _ in range(3 if num_steps is None else num_steps):
            w = w - ALPHA * gradient(w)
        np.testing.assert_allclose(start_of(adapted), w, atol=1e-5)
    np.testing.assert_array_equal(start_of(meta), start)
    assert type(adapted) is keras.Sequential
    predicted = meta.predict(tasks, verbose=0)
    adapted = meta.adapt(xs[1], ys[1])
    np.testing.assert_allclose(predicted[1], adapted(xq[1]), atol=1e-5)


def test_predict_without_a_task_says_what_to_call():
    meta = make_meta()
    x = np.zeros((2, meta.model.input_shape[-1]), "float32")
    with pytest.raises(
        ValueError, match=r"`predict` takes meta-batches.*adapt"
    ):
        meta.predict(x, verbose=0)


def test_evaluate_judges_what_predict_returns():
    meta = make_meta(E.RMD(num_steps=2), adaptation_steps=5)
    tasks = make_tasks(num_tasks=5)  # batches of three and of two
    logs = meta.evaluate(tasks, return_dict=True, verbose=0)
    predicted = meta.predict(tasks, verbose=0)
    assert predicted.shape == (5, NUM_EXAMPLES, 1)
    targets = np.concatenate([query[1] for _, query in tasks])
    error = predicted - targets
    expected = {"mae": np.abs(error).mean(), "outer_loss": (error**2).mean()}
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5)
    np.testing.assert_allclose(
        meta.evaluate(tasks, verbose=0), [logs["loss"], logs["mae"]], rtol=1e-6
    )
    unlabelled = tasks.map(lambda support, query: (support, query[0]))
    np.testing.assert_array_equal(
        meta.predict(unlabelled, verbose=0), predicted
    )


def test_fit_learns_and_logs():
    meta = make_meta(
        E.HPOSGLD(0, 3), hyper_optimizer=keras.optimizers.Adam(0.1)
    )
    tasks = make_tasks(num_tasks=9)
    history = meta.fit(
        tasks, epochs=20, validation_data=tasks, verbose=0
    ).history
    assert set(history) == {
        "loss",
        "outer_loss",
        "mae",
        "hypergradient_norm",
        "skipped_updates",
        "val_loss",
        "val_outer_loss",
        "val_mae",
    }
    assert history["val_outer_loss"][-1] < 0.8 * history["val_outer_loss"][0]
    assert int(meta.outer_iterations) == 60
    # Metrics are of the adapted model, on the queries.
    assert history["mae"][-1] < history["mae"][0]


def test_state_of_layers_advances():
    # Else each iteration would drop the same units.
    meta = make_meta(E.HPOSGLD(0, 3), dropout=0.5)
    (state,) = [v for v in meta.non_trainable_variables if "seed" in v.path]
    seen = [state.numpy()]
    for _ in range(2):
        meta.fit(make_tasks(), verbose=0)
        seen.append(state.numpy())
    # One draw an inner step, whatever the number of tasks.
    np.testing.assert_array_equal(np.diff(seen, axis=0), [[0, 3], [0, 3]])


def test_moving_statistics_are_means_over_the_tasks():
    def make():
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((NUM_FEATURES,)),
                keras.layers.BatchNormalization(momentum=0.5),
                keras.layers.Dense(1),
            ]
        )
        meta = hs.MetaModel(model)
        meta.compile(
            hs.SGLD(ALPHA), loss="mse", hypergradient=E.FirstOrder(num_steps=2)
        )
        return meta

    meta, tasks = make(), make_tasks()
    meta.fit(tasks, verbose=0)
    (xs, _), _ = next(tasks.as_numpy_iterator())
    mean = xs.mean(axis=(0, 1)) * (1 - 0.5**2)
    np.testing.assert_allclose(
        meta.model.layers[0].moving_mean, mean, atol=1e-6
    )


@pytest.mark.parametrize(
    "estimator", [pytest.param("rmd", marks=pytest.mark.slow), "hpo_sgld"]
)
def test_two_replicas_compute_what_one_does(mirrored, estimator):
    estimators = {"rmd": E.RMD(num_steps=3), "hpo_sgld": E.HPOSGLD(1, 2)}
    results = []
    for strategy in (None, mirrored):
        meta = make_meta(
            estimators[estimator],
            strategy=strategy,
            optimizer=make_sampler(strategy),
            hyper_optimizer=make_hyper_optimizer(strategy),
        )
        tasks = make_tasks(num_tasks=8, batch_size=4)
        history = meta.fit(tasks, epochs=3, verbose=0).history
        logs = meta.evaluate(tasks, return_dict=True, verbose=0)
        results.append((start_of(meta), history, logs))
    (one, history, logs), (two, other_history, other_logs) = results
    np.testing.assert_allclose(two, one, atol=1e-5)
    for name in history:
        np.testing.assert_allclose(
            other_history[name], history[name], rtol=1e-4, err_msg=name
        )
    for name in logs:
        np.testing.assert_allclose(
            other_logs[name], logs[name], rtol=1e-4, err_msg=name
        )


def make_sampler(strategy):
    with (strategy or tf.distribute.get_strategy()).scope():
        return hs.SGLD(ALPHA, temperature=1e-3, seed=1)


def make_hyper_optimizer(strategy):
    with (strategy or tf.distribute.get_strategy()).scope():
        return keras.optimizers.SGD(0.1, momentum=0.9)


def test_saved_learner_goes_on_as_if_it_had_not_stopped(tmp_path):
    def make():
        return make_meta(
            E.HPOSGLD(0, 2),
            dropout=0.3,
            optimizer=hs.SGLD(ALPHA, temperature=1e-3, seed=1),
            hyper_optimizer=keras.optimizers.Adam(0.05),
            proximal=0.1,
            adaptation_steps=4,
        )

    tasks = make_tasks(num_tasks=6)
    unbroken = make()
    unbroken.fit(tasks, epochs=2, verbose=0)
    first = make()
    first.fit(tasks, verbose=0)
    first.save(tmp_path / "meta.keras")
    loaded = keras.models.load_model(tmp_path / "meta.keras")
    assert (loaded.proximal, loaded.adaptation_steps) == (0.1, 4)
    np.testing.assert_array_equal(
        loaded.predict(tasks, verbose=0), first.predict(tasks, verbose=0)
    )
    loaded.fit(tasks, verbose=0)
    np.testing.assert_array_equal(start_of(loaded), start_of(unbroken))


@pytest.mark.slow
def test_exported_model_loads_without_the_package(tmp_path):
    meta, tasks = make_meta(), make_tasks()
    meta.fit(tasks, verbose=0)
    (xs, ys), _ = next(tasks.as_numpy_iterator())
    for name, model in (
        ("initial", meta.export()),
        ("adapted", meta.adapt(xs[0], ys[0])),
    ):
        model.save(tmp_path / f"{name}.keras")
        np.save(tmp_path / f"{name}.npy", model(xs[0]))
    np.save(tmp_path / "x.npy", xs[0])
    script = (
        "import sys; sys.modules['keras_hposgld'] = None\n"
        "import keras, numpy as np\n"
        "for name in ('initial', 'adapted'):\n"
        "    model = keras.models.load_model(name + '.keras')\n"
        "    x, y = np.load('x.npy'), np.load(name + '.npy')\n"
        "    np.testing.assert_array_equal(model(x), y)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=120
    )


def test_numbers_that_are_not_finite_change_nothing():
    meta = make_meta(E.HPOSGLD(0, 2), max_skipped_updates=2)
    tasks = make_tasks()
    meta.fit(tasks, verbose=0)
    before = start_of(meta)
    spoilt = tasks.map(
        lambda support, query: (support, (query[0], query[1] * np.nan))
    )
    with pytest.raises(RuntimeError, match="the outer objective"):
        meta.fit(spoilt, epochs=3, verbose=0)
    np.testing.assert_array_equal(start_of(meta), before)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="`model` must be a `keras.Model`"):
        hs.MetaModel(keras.layers.Dense(1))
    with pytest.raises(TypeError, match="`optimizer` must be"):
        make_meta(optimizer=3)
    with pytest.raises(ValueError, match="`proximal` must be"):
        make_meta(proximal=-1.0)
    with pytest.raises(ValueError, match="`adaptation_steps` must be"):
        make_meta(adaptation_steps=-1)
    meta = make_meta()
    (support, query) = next(iter(make_tasks()))
    for tasks, message in (
        ((support, query), "must be a `tf.data.Dataset` of meta-batches"),
        (
            tf.data.Dataset.from_tensor_slices(support).batch(2),
            "must be \\(x, y\\)",
        ),
        (
            tf.data.Dataset.from_tensor_slices((*support, *query)).batch(2),
            "x_support, y_support",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            meta.fit(tasks)
    with pytest.raises(RuntimeError, match="train_on_batch"):
        meta.train_on_batch(support)
    plain = hs.MetaModel(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(RuntimeError, match="compile"):
        plain.fit(make_tasks())
    with pytest.raises(RuntimeError, match="compile"):
        plain.predict(make_tasks())
    with pytest.raises(RuntimeError, match="compile"):
        plain.adapt(*support)
    with pytest.raises(ValueError, match="`AdjointSGLD` cannot serve"):
        make_meta("adjoint_sgld").fit(make_tasks(), verbose=0)
    with pytest.raises(ValueError, match="iMAML"):
        make_meta(E.IFTCG(num_steps=2)).fit(make_tasks(), verbose=0)
