"""Models made elsewhere, warm-up, and what is printed."""

import keras
import numpy as np
import pytest

import keras_hposgld as hs


def images(n, size=32, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, size, size, 3)) + y[:, None, None, None]
    return x.astype("float32"), y


def is_dense_kernel(weight):
    return weight.name == "kernel" and weight.shape[-1] > 1


@pytest.mark.slow
def test_network_of_keras_applications_is_regularized_from_outside(tmp_path):
    keras.utils.set_random_seed(0)
    network = keras.applications.MobileNet(
        (32, 32, 3),
        alpha=0.25,
        weights=None,
        classes=3,
        classifier_activation=None,
    )
    # A fresh network predicts nothing before its statistics are those of data.
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.1
    for _ in range(3):
        network(images(30)[0], training=True)
    kernels = [
        w for w in network.trainable_variables if w.name.endswith("kernel")
    ]
    centers = [np.array(w) for w in kernels]
    learner = hs.BilevelModel(
        network,
        regularizer=hs.regularizers.LearnableL1(
            1e-4, granularity="output", max_value=1.0, center="initial"
        ),
        # Depthwise kernels end with an axis that is no output.
        filter=is_dense_kernel,
    )
    learner.compile(
        optimizer=hs.SGLD(0.01, temperature=1e-8),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        hypergradient=hs.estimators.HPOSGLD(1, 1),
    )
    chosen = [w for w in kernels if is_dense_kernel(w)]
    assert 10 < len(chosen) < len(kernels)
    history = learner.fit(
        *images(12), outer_data=images(6, seed=1), batch_size=6, verbose=0
    ).history
    assert np.isfinite(history["outer_loss"]).all()
    assert [v.shape for v in learner.hyperparameters] == [
        w.shape[-1:] for w in chosen
    ]
    for value in learner.hyperparameter_values().values():
        assert np.abs(value - 1e-4).max() > 1e-6
    penalties = learner.regularizer.penalties
    assert [id(p.weight) for p in penalties] == [id(w) for w in chosen]
    for weight, center, penalty in zip(
        chosen,
        [
            center
            for center, weight in zip(centers, kernels, strict=True)
            if is_dense_kernel(weight)
        ],
        penalties,
        strict=True,
    ):
        np.testing.assert_array_equal(penalty.center, center)
        assert np.any(weight != center)
    with pytest.warns(UserWarning, match="pulls to the initial weights"):
        exported = learner.export()
    exported.save(tmp_path / "plain.keras")
    x, _ = images(4, seed=2)
    np.testing.assert_allclose(
        keras.models.load_model(tmp_path / "plain.keras").predict(x, verbose=0),
        learner.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )


def make_learner(**arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                5,
                name="first",
                kernel_regularizer=hs.regularizers.LearnableL2(
                    0.02, granularity="input", max_value=5.0
                ),
            ),
            keras.layers.Dense(
                1,
                name="second",
                kernel_regularizer=hs.regularizers.LearnableL1L2(
                    0.01, max_value=5.0
                ),
            ),
        ],
        name="network",
    )
    learner = hs.BilevelModel(model, seed=0)
    defaults = dict(
        optimizer=hs.SGLD(0.05, temperature=1e-4, seed=0),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(1, 2),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, *callbacks, **arguments):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 4))
    defaults = dict(
        outer_data=(x[16:], x[16:, :1]),
        batch_size=4,
        epochs=3,
        steps_per_epoch=2 * 3,
        verbose=0,
    )
    return learner.fit(
        x[:16], x[:16, :1], callbacks=list(callbacks), **(defaults | arguments)
    )


@pytest.mark.parametrize(
    "warmup_steps, first", [(0, 1), (1, 2), (3, 2), (4, 3), (9, 4), (999, None)]
)
def test_hyperparameters_wait_for_the_warm_up(warmup_steps, first):
    # Chains of 3 steps begin at inner steps 0, 3, 6, ...
    learner = make_learner(
        warmup_steps=warmup_steps, hyper_optimizer=keras.optimizers.SGD(10.0)
    )
    start = np.array(learner.hyperparameters[0])
    moved = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            now = learner.hyperparameters[0].numpy()
            moved.append(bool(np.any(now != start)))

    plain = make_learner(hyper_optimizer=keras.optimizers.SGD(0.0))
    fit(plain)
    fit(learner, Watch())
    expected = [first is not None and number >= first for number in range(1, 7)]
    assert moved == expected
    assert int(learner.hyper_optimizer.iterations) == sum(expected)
    if first is None:  # the weights moved all the while
        for a, b in zip(
            learner.trainable_variables, plain.trainable_variables, strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_several_steps_an_execution_give_the_same():
    one, several = make_learner(), make_learner(steps_per_execution=2 * 3)
    first, second = fit(one).history, fit(several).history
    for a, b in zip(one.weights, several.weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first == second


def test_hyper_optimizer_clips_and_follows_its_schedule():
    clipped = make_learner(
        hyper_optimizer=keras.optimizers.SGD(
            keras.optimizers.schedules.PiecewiseConstantDecay([2], [1.0, 0.0]),
            global_clipnorm=1e-3,
        )
    )
    course = []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            variables = clipped.hyperparameters
            course.append(np.concatenate([np.ravel(v) for v in variables]))

    before = np.concatenate([np.ravel(v) for v in clipped.hyperparameters])
    fit(clipped, Watch())
    steps = np.linalg.norm(np.diff([before, *course], axis=0), axis=1)
    # Steps 0, 1 and 2 at rate one, along a gradient of length 1e-3.
    np.testing.assert_allclose(steps[:3], 1e-3, rtol=1e-3)
    np.testing.assert_array_equal(steps[3:], 0.0)


def test_summary_shows_hyperparameters_apart_from_weights():
    learner, lines = make_learner(), []
    learner.summary(print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    assert "first" in text and "second" in text
    assert "Hyperparameters: 14 " in lines[-1]


def test_hyperparameter_summary_is_a_table(capsys):
    learner, lines = make_learner(), []
    learner.hyperparameters[0].assign([-3.0, -2.0, 0.0, 1.0])
    learner.hyperparameter_summary(print_fn=lines.append)
    head, _, first, second, third, _, total = lines
    assert head.split() == (
        "path granularity number minimum median maximum".split()
    )
    values = 5.0 / (1.0 + np.exp([3.0, 2.0, 0.0, -1.0]))
    path, granularity, number, *spread = first.split()
    assert path == "network/first/kernel/l2" and granularity == "input"
    assert number == "4"
    np.testing.assert_allclose(
        [float(word) for word in spread],
        [values.min(), np.median(values), values.max()],
        rtol=5e-3,
    )
    assert second.split()[:3] == ["network/second/kernel/l1", "parameter", "5"]
    assert third.split()[3:] == ["0.01"] * 3
    assert total == "14 hyperparameters"
    assert len({len(line) for line in lines[:-1]}) == 1
    learner.hyperparameter_summary()
    assert capsys.readouterr().out.splitlines() == lines
