"""What each worker runs in the test of `MetaModel` on two of them."""

import numpy as np
import tensorflow as tf
from test_examples import load


def train(example):
    options, strategy = example.parse(), example.make_strategy()
    import keras

    import keras_hposgld as hs

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)

    def side(queries):
        x = rng.normal(size=(12, queries, 3)).astype("float32")
        return x, np.tanh(x.sum(-1, keepdims=True))

    # Twelve tasks, four a meta-batch: two of each for each worker.
    tasks = tf.data.Dataset.from_tensor_slices((side(5), side(6))).batch(4)
    with strategy.scope():
        layers = keras.layers
        model = keras.Sequential(
            [
                keras.Input((3,)),
                layers.Dense(8, activation="tanh"),
                layers.Dropout(0.2, seed=1),
                layers.Dense(1),
            ]
        )
        meta = hs.MetaModel(model, seed=1)
        meta.compile(
            hs.SGLD(0.1, temperature=1e-3, seed=1),
            loss="mse",
            metrics=["mae"],
            hypergradient=options.estimator,
            hyper_optimizer=keras.optimizers.Adam(0.01),
        )
    history = meta.fit(tasks, epochs=options.epochs, verbose=0)
    judged = meta.evaluate(tasks, verbose=0, return_dict=True)
    np.savez(
        options.folder / options.name / "learned.npz",
        *[v.numpy() for v in meta.hyperparameters],
        *[values[-1] for _, values in sorted(history.history.items())],
        *[value for _, value in sorted(judged.items())],
    )


if __name__ == "__main__":
    train(load("multi_worker"))
