"""Under a mixed policy the chain stays in float32."""

import keras
import numpy as np
import pytest

import keras_hposgld as hs


def make_learner(policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(
                    4, 3, kernel_regularizer=hs.regularizers.LearnableL2(0.01)
                ),
                keras.layers.BatchNormalization(),
                keras.layers.Activation("relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(
                    3,
                    dtype="float32",
                    kernel_regularizer=hs.regularizers.LearnableL1(0.001),
                ),
            ]
        )
        learner = hs.BilevelModel(model)
    finally:
        keras.config.set_dtype_policy("float32")
    learner.compile(
        optimizer=hs.SGLD(0.05, temperature=1e-5, seed=2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        hypergradient=hs.estimators.AdjointSGLD(2, 3),
    )
    return learner


def fit(learner, **arguments):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(size=(60, 8, 8, 1)) + y[:, None, None, None]
    defaults = dict(outer_split=0.5, batch_size=10, epochs=6, verbose=0)
    return learner.fit(x, y, **(defaults | arguments)).history


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_chain_and_hyperparameters_are_float32(policy):
    reference = make_learner("float32")
    expected = fit(reference)
    learner = make_learner(policy)
    seen = []
    learner.outer_level.observers.append(
        lambda estimate: seen.extend(
            tensor.dtype.name
            for tensor in (
                *estimate.params,
                *estimate.hypergradient,
                *estimate.kept,
                estimate.outer_loss,
                estimate.inner_loss,
            )
        )
    )
    history = fit(learner)
    assert learner.model.layers[0].compute_dtype == policy.removeprefix(
        "mixed_"
    )
    assert seen and set(seen) == {"float32"}
    for variable in (*learner.hyperparameters, *learner.trainable_variables):
        assert variable.dtype == "float32"
    # Noise is that of the float32 chain: the runs stay together, as far as
    # activations of 8 or 11 bits allow.
    np.testing.assert_allclose(
        history["outer_loss"], expected["outer_loss"], rtol=0.05
    )
    for a, b in zip(
        learner.hyperparameters, reference.hyperparameters, strict=True
    ):
        # Adam moves by signs: where there is next to no slope they differ.
        close = np.abs(np.array(a) - np.array(b)) < 0.2
        assert close.mean() > 0.9
    assert sum(history["skipped_updates"]) == 0


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_callback_mode_under_a_mixed_policy(policy):
    learner = make_learner(policy)
    model = learner.model
    model.compile(
        "adam",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    learning = hs.callbacks.LearnHyperparameters(
        (np.ones((20, 8, 8, 1)), np.arange(20) % 3),
        hs.estimators.HPOSGLD(1, 1),
        every=2,
        batch_size=5,
    )
    rng = np.random.default_rng(0)
    history = model.fit(
        rng.normal(size=(60, 8, 8, 1)),
        np.arange(60) % 3,
        callbacks=[learning],
        batch_size=10,
        epochs=2,
        verbose=0,
    ).history
    assert np.all(np.isfinite(history["outer_loss"]))
    assert learning.hyperparameters[0].dtype == "float32"


def test_small_gradients_of_float16_layers_are_not_lost():
    # Slopes of the loss by activations are about 1e-8: less than the smallest
    # float16. The loss scale must change neither the gradient nor the mixed
    # derivative.
    def learned(policy):
        keras.utils.set_random_seed(0)
        regularizer = hs.regularizers.LearnableL2(1e-6, max_value=1.0)
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(
                    3, dtype=policy, kernel_regularizer=regularizer
                ),
                keras.layers.Dense(1, dtype=policy),
            ]
        )
        learner = hs.BilevelModel(model)
        learner.compile(
            optimizer=hs.SGLD(0.1),
            loss=lambda y, prediction: 1e-6 * (y - prediction) ** 2,
            hypergradient=hs.estimators.HPOSGLD(1, 2),
        )
        seen = []
        learner.outer_level.observers.append(
            lambda estimate: seen.extend(
                t.numpy() for t in estimate.hypergradient
            )
        )
        learner.run_eagerly = True
        before = [np.array(w) for w in learner.trainable_variables]
        rng = np.random.default_rng(1)
        x, y = rng.normal(size=(64, 4)), rng.normal(size=(64, 1))
        learner.fit(
            x,
            y,
            outer_data=(x[:32], y[:32]),
            batch_size=32,
            steps_per_epoch=learner.hypergradient.num_steps,
            verbose=0,
            shuffle=False,
        )
        moved = [
            np.array(w) - b
            for w, b in zip(learner.trainable_variables, before, strict=True)
        ]
        return moved, seen

    (moved, seen), (expected, hypergradient) = (
        learned("mixed_float16"),
        learned("float32"),
    )
    for a, b in zip(moved, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-9)
    np.testing.assert_allclose(
        seen[0], hypergradient[0], rtol=0.05, atol=1e-3 * np.abs(seen[0]).max()
    )
