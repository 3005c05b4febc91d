"""L2 towards the start, one strength for each layer of a model made before."""

import keras
import numpy as np

import keras_hposgld as hs

L = keras.layers


def test_each_layer_has_a_strength_of_its_own():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), L.Dense(5, "tanh"), L.Dense(4, "tanh"), L.Dense(1)]
    )
    starts = [layer.kernel.numpy() for layer in model.layers]
    learner = hs.BilevelModel(
        model,
        regularizer=hs.regularizers.LearnableL2(
            0.05, granularity="tensor", center="initial"
        ),
        seed=0,
    )
    learner.compile(optimizer=hs.SGLD(0.05, seed=0), loss="mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)).astype("float32")
    y = x[:, :1] * x[:, 1:2] + 0.5 * rng.normal(size=(60, 1))
    learner.fit(x, y, outer_split=0.4, batch_size=6, epochs=12, verbose=0)
    strengths = list(learner.hyperparameter_values().values())
    assert [s.shape for s in strengths] == [()] * 3
    assert min(abs(s - 0.05) for s in strengths) > 1e-3
    assert len(set(np.round(strengths, 4))) == 3
    # What is added to the loss is the pull of each kernel to where it began.
    penalty = sum(
        s * np.sum((layer.kernel.numpy() - start) ** 2)
        for s, layer, start in zip(strengths, model.layers, starts, strict=True)
    )
    loss = learner.evaluate(x, y, batch_size=60, verbose=0)
    error = np.mean((learner.predict(x, verbose=0) - y) ** 2)
    np.testing.assert_allclose(loss - error, penalty, rtol=1e-4)
