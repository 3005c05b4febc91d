"""A warm adjoint before a batch normalization, and what helps.

Six inputs of which two count, a dense layer with a strength for each input,
then a batch normalization: the weights before it have no scale of their own.
The more they are pulled to zero, the higher is the curvature, and a q that is
kept from one outer iteration to the next may grow there.

    python experiments/adjoint/normalization.py [--quick]
        [--page docs/adjoint_sgld.md]
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "theory"))

import reporting  # noqa: E402

OPTIONS = {
    "`warm_start=True`": {},
    "`warm_start=False`": {"warm_start": False},
    "`damping=1`": {"damping": 1.0},
    '`curvature="gauss_newton"`': {"curvature": "gauss_newton"},
}


def learn(arguments, seed, epochs):
    """Mean strengths of the inputs that count, and of the others."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(240, 6)).astype("float32")
    y = x[:, :1] - x[:, 1:2] + 0.3 * rng.normal(size=(240, 1))
    strengths = hs.regularizers.LearnableL2(
        1e-2, granularity="input", max_value=5.0
    )
    network = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, kernel_regularizer=strengths),
            keras.layers.BatchNormalization(),
            keras.layers.Activation("relu"),
            keras.layers.Dense(1),
        ]
    )
    learner = hs.BilevelModel(network, seed=seed)
    learner.compile(
        optimizer=hs.SGLD(0.05, seed=seed),
        loss="mse",
        hypergradient=hs.estimators.AdjointSGLD(**arguments),
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    history = learner.fit(
        x[:120],
        y[:120],
        outer_data=(x[120:], y[120:]),
        batch_size=40,
        epochs=epochs,
        steps_per_epoch=9 * learner.hypergradient.num_steps,
        verbose=0,
    )
    ((_, values),) = learner.hyperparameter_values().items()
    values = np.asarray(values)
    skipped = int(sum(np.array(history.history["skipped_updates"])))
    return values[:2].mean(), values[2:].mean(), skipped


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    seeds, epochs = (range(1), 2) if options.quick else (range(3), 20)
    rows = {
        name: np.array([learn(given, seed, epochs) for seed in seeds])
        for name, given in OPTIONS.items()
    }
    reporting.publish(
        "normalization",
        ["", "two that count", "four of noise", "skipped updates"],
        [
            [
                name,
                *(
                    ", ".join(f"{value:.3g}" for value in found[:, column])
                    for column in range(3)
                ),
            ]
            for name, found in rows.items()
        ],
        options.page,
    )
    return rows


if __name__ == "__main__":
    main()
