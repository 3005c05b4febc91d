"""`BilevelModel` as a Keras model that learns on two levels."""

import os
import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.data.arrays import ArrayData

TESTS = pathlib.Path(__file__).parent


def make_data(n=48, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)).astype("float32")
    y = np.argmax(x[:, :classes] + rng.normal(size=(n, classes)), axis=1)
    return x, y


def make_network(*layers, regularizer=None):
    def learnable():
        return hs.regularizers.LearnableL2(0.02, max_value=5.0)

    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(
                8, "tanh", kernel_regularizer=regularizer or learnable()
            ),
            *layers,
            keras.layers.Dense(
                3, kernel_regularizer=regularizer or learnable()
            ),
        ]
    )


def make_learner(*layers, seed=1, **arguments):
    keras.utils.set_random_seed(seed)
    learner = hs.BilevelModel(make_network(*layers))
    defaults = dict(
        optimizer=hs.SGLD(0.1, temperature=1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        hypergradient=hs.estimators.HPOSGLD(2, 3),
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, **arguments):
    x, y = make_data()
    defaults = dict(
        outer_data=make_data(24, seed=1), batch_size=8, epochs=2, verbose=0
    )
    return learner.fit(x, y, **(defaults | arguments))


def state(learner):
    return [
        variable.numpy()
        for variable in (*learner.trainable_variables, *learner.hyperparameters)
    ]


def assert_same_state(first, second, **tolerance):
    compare = (
        np.testing.assert_allclose
        if tolerance
        else np.testing.assert_array_equal
    )
    for a, b in zip(state(first), state(second), strict=True):
        compare(a, b, **tolerance)


def losses_of(regularized, hyperparameters, params, x, y):
    """The network of `make_network`, written out in TensorFlow."""
    w1, b1, w2, b2 = params
    logits = tf.tanh(x @ w1 + b1) @ w2 + b2
    loss = tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
    )
    if regularized:
        for raw, w in zip(hyperparameters, (w1, w2), strict=True):
            loss += tf.reduce_sum(5.0 * tf.sigmoid(raw) * w**2)
    return loss


def test_outer_iteration_is_the_functional_estimate_and_one_adam_step():
    learner = make_learner()
    (x, y), outer_data = make_data(), make_data(24, seed=1)
    fit(learner, epochs=1, steps_per_epoch=1)

    same = make_learner()
    params = [tf.constant(w.numpy()) for w in same.trainable_variables]
    hyperparameters = [tf.constant(v.numpy()) for v in same.hyperparameters]
    sampler = same.optimizer
    estimate = hs.hypergradient(
        hs.BilevelProblem(
            lambda h, p, batch: losses_of(True, h, p, *batch),
            lambda h, p, batch: losses_of(False, h, p, *batch),
        ),
        hyperparameters,
        params,
        estimator=hs.estimators.HPOSGLD(2, 3),
        sampler=sampler,
        inner_batches=next(
            iter(ArrayData("x", (x, y), 8, seed=same.seed).chains(5))
        ),
        outer_batches=next(
            iter(ArrayData("x", outer_data, 8, seed=same.seed + 1).chains(5))
        ),
        seed=sampler.chain_seed,
    )
    same.hyper_optimizer.apply(estimate.hypergradient, same.hyperparameters)
    for variable, value in zip(
        same.trainable_variables, estimate.params, strict=True
    ):
        variable.assign(value)
    # Two programs for the same numbers in float32; Adam's first step is the
    # sign of the hypergradient wherever that is not tiny.
    assert_same_state(learner, same, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        learner.get_metrics_result()["hypergradient_norm"],
        tf.linalg.global_norm(estimate.hypergradient),
        rtol=1e-4,
    )
    np.testing.assert_allclose(
        learner.get_metrics_result()["outer_loss"],
        estimate.outer_loss,
        rtol=1e-4,
    )


def test_weights_are_those_of_plain_keras_training_on_the_same_batches():
    # With hyperparameters that do not move, the chain is what a plain
    # `model.fit` with the same sampler does on the same batches.
    learner = make_learner(hyper_optimizer=keras.optimizers.SGD(0.0))
    fit(learner)
    keras.utils.set_random_seed(1)
    reference = make_learner()  # for the same initial weights and seeds
    plain, sampler = reference.model, reference.optimizer
    plain.compile(
        hs.SGLD.from_config(sampler.get_config()), loss=reference.loss
    )
    batches = ArrayData("x", make_data(), 8, seed=reference.seed)
    for x, y in batches.chains(5).take(4):
        for step in range(5):
            plain.train_on_batch(x[step], y[step])
    for a, b in zip(
        learner.trainable_variables, plain.trainable_variables, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_learning_lowers_the_outer_loss():
    learner = make_learner(optimizer=hs.SGLD(0.1))
    history = fit(learner, epochs=40).history
    assert history["outer_loss"][-1] < 0.9 * history["outer_loss"][0]
    for value in learner.hyperparameter_values().values():
        assert np.ptp(value) > 0.01  # strengths have spread from one start


def test_equal_seeds_give_equal_runs_bit_for_bit():
    first, second, other = (make_learner(seed=s) for s in (1, 1, 2))
    for learner in (first, second, other):
        fit(learner)
    assert_same_state(first, second)
    assert np.any(state(first)[0] != state(other)[0])


@pytest.mark.parametrize(
    "arguments", [{"run_eagerly": True}, {"jit_compile": True}]
)
def test_other_ways_of_running_give_the_same(arguments):
    reference, learner = make_learner(), make_learner(**arguments)
    fit(reference)
    fit(learner)
    # Adam turns rounding of a tiny hypergradient into a visible step, so the
    # hyperparameters are compared to a hundredth of a step.
    assert_same_state(learner, reference, rtol=1e-4, atol=1e-3)


def test_training_that_goes_on_equals_training_without_a_break():
    whole, parts = make_learner(), make_learner()
    fit(whole, epochs=4)
    fit(parts, epochs=2)
    fit(parts, epochs=4, initial_epoch=2)
    assert_same_state(whole, parts)


@pytest.mark.slow
def test_saved_learner_goes_on_in_a_new_process(tmp_path):
    dropout = keras.layers.Dropout(0.2, seed=4)
    learner = make_learner(keras.layers.BatchNormalization(), dropout)
    fit(learner)
    learner.save(tmp_path / "learner.keras")
    fit(learner)
    script = textwrap.dedent(
        f"""
        import keras
        import keras_hposgld
        import numpy as np
        import test_bilevel_model as tests

        learner = keras.models.load_model({str(tmp_path / "learner.keras")!r})
        tests.fit(learner)
        np.savez({str(tmp_path / "state.npz")!r}, *tests.state(learner))
        """
    )
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
    )
    with np.load(tmp_path / "state.npz") as loaded:
        for value, name in zip(state(learner), loaded, strict=True):
            np.testing.assert_array_equal(loaded[name], value)


def test_datasets_give_what_arrays_give():
    (x, y), (u, v) = make_data(), make_data(24, seed=1)
    arrays, datasets = make_learner(), make_learner()
    fit(arrays, shuffle=False, outer_batch_size=6)
    datasets.fit(
        tf.data.Dataset.from_tensor_slices((x, y)).batch(8),
        outer_data=tf.data.Dataset.from_tensor_slices((u, v)).batch(6),
        epochs=2,
        verbose=0,
    )
    # Both start at the beginning, and 2 epochs of 2 chains do not wrap
    # around differently.
    assert_same_state(arrays, datasets)


def test_sample_weight_and_class_weight_count_in_the_inner_loss():
    x, y = make_data()
    class_weight = {0: 3.0, 2: 0.5}
    weights = np.array([class_weight.get(label, 1.0) for label in y])
    by_class, by_sample, neither = (make_learner() for _ in range(3))
    fit(by_class, class_weight=class_weight)
    fit(by_sample, sample_weight=weights)
    fit(neither)
    assert_same_state(by_class, by_sample)
    assert np.any(state(by_class)[0] != state(neither)[0])


def test_logs_and_progress_count_batches_of_whole_chains():
    seen = []
    history = fit(
        make_learner(),
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: seen.append(batch)
            )
        ],
        validation_data=make_data(30, seed=2),
    )
    # 48 examples in batches of 8 are 6 inner steps; chains have 5.
    assert seen == [4, 9, 4, 9]
    assert history.params["steps"] == 10
    assert set(history.history) == {
        "loss",
        "outer_loss",
        "hypergradient_norm",
        "skipped_updates",
        "accuracy",
        "val_loss",
        "val_outer_loss",
        "val_accuracy",
    }
    assert history.history["skipped_updates"] == [0.0, 0.0]


def test_logged_loss_is_the_mean_of_the_inner_loss():
    learner = make_learner(optimizer=hs.SGLD(1e-7), hypergradient="hpo_sgld")
    x, y = make_data(8)
    expected = learner.model.losses
    logits = learner.predict(x, verbose=0)
    cross_entropy = float(learner.loss(y, logits))
    history = learner.fit(
        x, y, outer_data=(x, y), batch_size=8, verbose=0
    ).history
    # At this learning rate nothing moves, so all evaluations agree.
    np.testing.assert_allclose(
        history["loss"], cross_entropy + float(sum(expected)), rtol=1e-4
    )
    np.testing.assert_allclose(history["outer_loss"], cross_entropy, rtol=1e-4)
    np.testing.assert_allclose(
        history["accuracy"], np.mean(logits.argmax(1) == y), rtol=1e-6
    )


def test_outer_objective_is_evaluated_in_inference_mode():
    # Nothing moves at this learning rate; only dropout could make a difference.
    learner = make_learner(
        keras.layers.Dropout(0.5), optimizer=hs.SGLD(1e-7), metrics=[]
    )
    x, y = make_data(8)
    expected = float(learner.loss(y, learner.predict(x, verbose=0)))
    history = learner.fit(
        x, y, outer_data=(x, y), batch_size=8, verbose=0
    ).history
    np.testing.assert_allclose(history["outer_loss"], expected, rtol=1e-4)
    assert abs(history["loss"][0] - expected - sum(learner.losses)) > 1e-3


@pytest.mark.parametrize(
    "estimator",
    [
        "adjoint_sgld",
        pytest.param("score_covariance", marks=pytest.mark.slow),
        pytest.param("ift_cg", marks=pytest.mark.slow),
        pytest.param("rmd", marks=pytest.mark.slow),
        pytest.param("ift_neumann", marks=pytest.mark.slow),
        pytest.param("fmd", marks=pytest.mark.slow),
    ],
)
def test_every_estimator_serves_fit(tmp_path, estimator):
    if estimator == "score_covariance":
        estimator = hs.estimators.ScoreCovariance(2, 10)
    learner = make_learner(
        keras.layers.BatchNormalization(), hypergradient=estimator
    )
    steps_per_epoch = 2 * learner.hypergradient.num_steps
    fit(learner, epochs=1, steps_per_epoch=steps_per_epoch)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    for one in (learner, loaded):
        history = fit(one, epochs=1, steps_per_epoch=steps_per_epoch).history
        assert history["skipped_updates"] == [0.0]
        assert history["hypergradient_norm"][0] > 0
    assert_same_state(learner, loaded)


def test_adjoint_is_kept_from_chain_to_chain():
    # Two chains of five steps with the adjoint kept see what one of ten sees,
    # when hyperparameters and batches are the same all along.
    x, y = make_data(8)
    data = dict(outer_data=(x, y), batch_size=8, shuffle=False, verbose=0)

    def norm(estimator, chains):
        learner = make_learner(
            hypergradient=estimator,
            optimizer=hs.SGLD(0.1),
            hyper_optimizer=keras.optimizers.SGD(0.0),
        )
        for _ in range(chains):
            history = learner.fit(x, y, steps_per_epoch=1, **data).history
        return history["hypergradient_norm"][0]

    whole = norm(hs.estimators.AdjointSGLD(9, 1), 1)
    kept = norm(hs.estimators.AdjointSGLD(4, 1), 2)
    fresh = norm(hs.estimators.AdjointSGLD(4, 1, warm_start=False), 2)
    np.testing.assert_allclose(kept, whole, rtol=1e-5)
    assert abs(fresh - whole) > 0.01 * whole


def test_evaluate_returns_what_keras_returns():
    learner = make_learner()
    fit(learner)
    x, y = make_data(30, seed=2)
    learner.model.compile(loss=learner.loss, metrics=["accuracy"])
    expected = learner.model.evaluate(x, y, verbose=0)
    np.testing.assert_allclose(
        learner.evaluate(x, y, verbose=0), expected, rtol=1e-5
    )
    logs = learner.evaluate(x, y, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "accuracy", "outer_loss"}
    logits = learner.predict(x, verbose=0)
    np.testing.assert_allclose(
        logs["outer_loss"], float(learner.loss(y, logits)), rtol=1e-5
    )


def test_outer_loss_may_differ_from_the_inner_one():
    x, y = make_data(30, seed=2)
    probabilities = np.eye(3)[y].astype("float32")
    for outer_loss in ("mse", keras.losses.MeanSquaredError()):
        learner = make_learner(
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            outer_loss=outer_loss,
        )
        learner.fit(x, probabilities, outer_data=(x, probabilities), verbose=0)
        logs = learner.evaluate(x, probabilities, verbose=0, return_dict=True)
        logits = learner.predict(x, verbose=0)
        np.testing.assert_allclose(
            logs["outer_loss"],
            np.mean((logits - probabilities) ** 2),
            rtol=1e-5,
        )


def test_batch_normalization_and_dropout_are_carried_or_frozen():
    def trained(layer_state):
        normalization = keras.layers.BatchNormalization(momentum=0.9)
        dropout = keras.layers.Dropout(0.3, seed=1)
        learner = make_learner(normalization, dropout, layer_state=layer_state)
        fit(learner, epochs=1, steps_per_epoch=1)
        return normalization, dropout

    normalization, dropout = trained("frozen")
    np.testing.assert_array_equal(normalization.moving_mean, np.zeros(8))
    frozen_seed = dropout.seed_generator.state.numpy()
    normalization, dropout = trained("carried")
    assert np.all(normalization.moving_mean.numpy() != 0)
    # One chain of five inner steps: five draws of dropout, five updates of the
    # statistics, and none by the outer objective.
    carried_seed = dropout.seed_generator.state.numpy()
    np.testing.assert_array_equal(carried_seed - frozen_seed, [0, 5])


def test_moving_statistics_are_those_of_plain_training():
    def network():
        return keras.layers.BatchNormalization(momentum=0.8)

    learner = make_learner(network(), hyper_optimizer=keras.optimizers.SGD(0.0))
    fit(learner, epochs=1)
    reference = make_learner(network())
    plain = reference.model
    plain.compile(
        hs.SGLD.from_config(reference.optimizer.get_config()),
        loss=reference.loss,
    )
    batches = ArrayData("x", make_data(), 8, seed=reference.seed)
    for x, y in batches.chains(5).take(2):
        for step in range(5):
            plain.train_on_batch(x[step], y[step])
    for a, b in zip(
        learner.model.layers[1].weights, plain.layers[1].weights, strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_start_initial_begins_every_chain_at_the_first_weights(tmp_path):
    learner = make_learner(
        start="initial",
        optimizer=hs.SGLD(0.1),
        hyper_optimizer=keras.optimizers.SGD(0.0),
    )
    x, y = make_data(8)
    once = make_learner(optimizer=hs.SGLD(0.1))
    data = dict(outer_data=(x, y), batch_size=8, shuffle=False, verbose=0)
    once.fit(x, y, steps_per_epoch=1, **data)
    # Full batches in a fixed order: each chain is the same.
    three = 3 * learner.hypergradient.num_steps
    learner.fit(x, y, steps_per_epoch=three, **data)
    for a, b in zip(
        learner.trainable_variables, once.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(a, b)
    learner.save(tmp_path / "learner.keras")
    for compiled in (True, False):
        loaded = keras.models.load_model(
            tmp_path / "learner.keras", compile=compiled
        )
        if not compiled:
            loaded.compile(
                start="initial",
                optimizer=hs.SGLD(0.1),
                loss=learner.loss,
                hypergradient=hs.estimators.HPOSGLD(2, 3),
                hyper_optimizer=keras.optimizers.SGD(0.0),
            )
        loaded.fit(x, y, steps_per_epoch=1, **data)
        for a, b in zip(
            loaded.trainable_variables, once.trainable_variables, strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_learning_rate_scheduler_and_schedules_change_the_inner_steps():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay(
        [9], [0.1, 0.01]
    )
    by_schedule = make_learner(optimizer=hs.SGLD(schedule))
    fit(by_schedule)
    by_callback = make_learner(optimizer=hs.SGLD(0.1))
    fit(
        by_callback,
        callbacks=[
            keras.callbacks.LearningRateScheduler(
                lambda epoch, rate: 0.1 if epoch == 0 else 0.01
            )
        ],
    )
    unchanged = make_learner(optimizer=hs.SGLD(0.1))
    fit(unchanged)
    # An epoch has two chains of five steps: number 10 is the first at 0.01.
    assert_same_state(by_schedule, by_callback)
    assert np.any(state(by_schedule)[0] != state(unchanged)[0])
    assert int(by_schedule.optimizer.iterations) == 20


def test_regularizer_is_attached_to_a_model_made_elsewhere(tmp_path):
    def network():
        return keras.Sequential(
            [
                keras.Input((5,)),
                keras.layers.Dense(8, "tanh"),
                keras.layers.Dense(3),
            ]
        )

    learner = hs.BilevelModel(
        network(), regularizer=hs.regularizers.LearnableL1(1e-3)
    )
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    assert [tuple(v.shape) for v in learner.hyperparameters] == [(5, 8), (8, 3)]
    fit(learner)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    assert_same_state(loaded, learner)
    np.testing.assert_allclose(sum(loaded.losses), sum(learner.losses))


def test_unbuilt_model_is_built_by_fit():
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.layers.Dense(
                3, kernel_regularizer=hs.regularizers.LearnableL2(0.01)
            )
        ]
    )
    learner = hs.BilevelModel(network)
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fit(learner)
    # The variable's own name, so that old `.h5` files have room for it.
    assert [
        path.replace("/l2", "_l2") for path in learner.hyperparameter_values()
    ] == [variable.path for variable in learner.hyperparameters]


class Cubed(keras.losses.Loss):
    """Gives infinity once the third call's labels come by."""

    def call(self, y_true, y_pred):
        return tf.where(y_true[:, 0] > 5, np.inf, 1.0) * tf.reduce_sum(
            y_pred**2, axis=-1
        )


def test_update_that_is_not_finite_is_skipped_and_training_goes_on():
    learner = make_learner(loss=Cubed(), metrics=[], max_skipped_updates=3)
    x, _ = make_data(10)
    good, bad = np.zeros((10, 3)), np.full((10, 3), 9.0)
    learner.fit(x, good, outer_data=(x, good), batch_size=10, verbose=0)
    before = state(learner)
    history = learner.fit(
        x, bad, outer_data=(x, good), batch_size=10, epochs=2, verbose=0
    ).history
    assert history["skipped_updates"] == [1.0, 1.0]
    for a, b in zip(state(learner), before, strict=True):
        np.testing.assert_array_equal(a, b)
    # A good one resets the count of those in a row.
    learner.fit(x, good, outer_data=(x, good), batch_size=10, verbose=0)
    assert np.any(state(learner)[0] != before[0])
    assert int(learner.outer_level.guard.skipped_in_a_row) == 0


@pytest.mark.parametrize("level", ["inner", "outer"])
def test_too_many_skipped_updates_stop_with_the_cause(level):
    learner = make_learner(loss=Cubed(), metrics=[], max_skipped_updates=3)
    x, _ = make_data(10)
    good, bad = np.zeros((10, 3)), np.full((10, 3), 9.0)
    learner.fit(x, good, outer_data=(x, good), batch_size=10, verbose=0)
    before = state(learner)
    y, outer = (bad, good) if level == "inner" else (good, bad)
    with pytest.raises(
        RuntimeError, match=f"3 outer iterations.*first in the {level} object"
    ):
        learner.fit(
            x, y, outer_data=(x, outer), batch_size=10, epochs=9, verbose=0
        )
    after, number = state(learner), len(learner.trainable_variables)
    for a, b in zip(after[number:], before[number:], strict=True):
        np.testing.assert_array_equal(a, b)
    # What the outer level has to say of the weights does not undo them.
    for a, b in zip(after[:number], before[:number], strict=True):
        assert np.all(a == b) == (level == "inner")


def test_weights_go_on_as_without_learning_where_the_outer_level_fails():
    x, _ = make_data(10)
    good, bad = np.zeros((10, 3)), np.full((10, 3), 9.0)
    failing = make_learner(loss=Cubed(), metrics=[])
    history = failing.fit(
        x, good, outer_data=(x, bad), batch_size=10, epochs=3, verbose=0
    ).history
    assert history["skipped_updates"] == [1.0] * 3
    still = make_learner(
        loss=Cubed(), metrics=[], hyper_optimizer=keras.optimizers.SGD(0.0)
    )
    still.fit(x, good, outer_data=(x, good), batch_size=10, epochs=3, verbose=0)
    assert_same_state(failing, still)


@pytest.mark.parametrize("fails", [True, False])
def test_what_an_adjoint_remembers_is_kept_only_from_a_chain_that_is_finite(
    fails,
):
    x, _ = make_data(10)
    good, bad = np.zeros((10, 3)), np.full((10, 3), 9.0)
    learner = make_learner(
        loss=Cubed(), metrics=[], hypergradient=hs.estimators.AdjointSGLD(1, 2)
    )
    learner.fit(x, good, outer_data=(x, good), batch_size=10, verbose=0)
    y = bad if fails else good
    learner.fit(x, good, outer_data=(x, y), batch_size=10, verbose=0)
    for variable in learner.outer_level.kept_copies.values:
        assert np.all(variable.numpy() == 0) == fails


def test_refit_trains_fresh_weights_under_the_learned_strengths():
    learner = make_learner()
    fit(learner, epochs=3)
    before = state(learner)
    x, y = make_data()
    history = learner.refit(x, y, epochs=4, batch_size=12, verbose=0)
    assert len(history.history["loss"]) == 4
    num_weights = len(learner.trainable_variables)
    after = state(learner)
    for a, b in zip(after[num_weights:], before[num_weights:], strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(after[:num_weights], before[:num_weights], strict=True):
        assert np.all(a != b)
    # Its loss is that of the learned strengths: weights that stay where they
    # are, under strengths far from their start.
    for variable in learner.hyperparameters:
        variable.assign(np.random.normal(0, 1, variable.shape))
    history = learner.refit(
        x, y, optimizer=keras.optimizers.SGD(0.0), verbose=0
    )
    np.testing.assert_allclose(
        history.history["loss"],
        learner.evaluate(x, y, verbose=0)[0],
        rtol=1e-4,
    )
    fit(learner)  # learning can go on from there


def test_refit_starts_at_the_center_of_fine_tuning():
    keras.utils.set_random_seed(1)
    pull = hs.regularizers.LearnableL2(0.5, max_value=4.0, center="initial")
    learner = hs.BilevelModel(make_network(regularizer=pull))
    centers = [w.numpy() for w in learner.trainable_variables if w.ndim == 2]
    learner.compile(
        optimizer=hs.SGLD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    fit(learner)
    x, y = make_data()
    learner.refit(
        x, y, optimizer=keras.optimizers.SGD(0.0), epochs=1, verbose=0
    )
    kernels = [w.numpy() for w in learner.trainable_variables if w.ndim == 2]
    for kernel, center in zip(kernels, centers, strict=True):
        np.testing.assert_array_equal(kernel, center)


def test_early_stopping_restores_the_best_outer_loss():
    stopping = keras.callbacks.EarlyStopping(
        monitor="val_outer_loss",
        mode="min",
        patience=2,
        restore_best_weights=True,
    )
    learner = make_learner(optimizer=hs.SGLD(0.1))
    validation = make_data(30, seed=2)
    history = fit(
        learner, epochs=100, validation_data=validation, callbacks=[stopping]
    )
    losses = history.history["val_outer_loss"]
    assert 3 < len(losses) < 100
    assert np.argmin(losses) == len(losses) - 3
    logs = learner.evaluate(*validation, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["outer_loss"], min(losses), rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"optimizer": 3}, TypeError, "`optimizer` must be a `keras_hpos"),
        ({"start": "random"}, ValueError, "`start` must be one of"),
        ({"layer_state": "ignored"}, ValueError, "`layer_state` must be one"),
        ({"hypergradient": "hposgld"}, ValueError, "Unknown estimator"),
        ({"max_skipped_updates": 0}, ValueError, "`max_skipped_updates` mu"),
        (
            {"optimizer": hs.SGLD(0.2)},
            ValueError,
            "`learning_rate \\* max_value` must be below 1",
        ),
    ],
)
def test_bad_compile_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        make_learner(**arguments)


def test_model_without_hyperparameters_is_refused():
    network = make_network(regularizer=keras.regularizers.L2(1e-3))
    with pytest.raises(ValueError, match="no hyperparameters to learn"):
        hs.BilevelModel(network).compile(optimizer=hs.SGLD(0.1), loss="mse")
    frozen = make_network()
    frozen.trainable = False
    with pytest.raises(ValueError, match="no hyperparameters to learn"):
        hs.BilevelModel(frozen).compile(optimizer=hs.SGLD(0.1), loss="mse")


def test_calls_out_of_order_and_of_the_wrong_type_are_refused():
    with pytest.raises(TypeError, match="`model` must be a `keras.Model`"):
        hs.BilevelModel(keras.layers.Dense(1))
    learner = hs.BilevelModel(make_network())
    with pytest.raises(RuntimeError, match="compile"):
        learner.fit(*make_data(), outer_data=make_data())
