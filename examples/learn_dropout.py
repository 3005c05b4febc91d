"""How much dropout on each input? Learned with the weights, in one training.

scikit-learn's digits get 64 columns of pure noise. 300 images train a network,
300 others judge its dropout rates, the rest are the test. Beside it stand no
dropout, and Keras's own layer at the mean of the learned rates.

    python examples/learn_dropout.py [--quick]
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import keras_hposgld as hs  # noqa: E402

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def load_data():
    """Training, outer and test images: 300, 300 and 1197."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits.target))
    x, y = digits.data[order], digits.target[order]
    x = (x - x[:300].mean(axis=0)) / (x[:300].std(axis=0) + 1.0)
    x = np.hstack([x, rng.normal(size=x.shape)]).astype("float32")
    parts = slice(300), slice(300, 600), slice(600, None)
    return [(x[part], y[part]) for part in parts]


def train(dropout, inner, epochs, callbacks=()):
    """A network behind a dropout layer."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((128,)),
            dropout,
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile("adam", LOSS, metrics=["accuracy"], steps_per_execution=6)
    model.fit(
        *inner, batch_size=50, epochs=epochs, callbacks=callbacks, verbose=0
    )
    return model


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    epochs = 10 if parser.parse_args(arguments).quick else 200
    inner, outer, test = load_data()

    dropout = hs.layers.LearnableDropout(0.3, granularity="input", seed=0)
    learning = hs.callbacks.LearnHyperparameters(outer, batch_size=50, seed=0)
    models = {"learned": train(dropout, inner, epochs, [learning])}
    (rates,) = learning.hyperparameter_values().values()
    for name, rate in (("no dropout", 0.0), ("constant", float(rates.mean()))):
        models[name] = train(keras.layers.Dropout(rate), inner, epochs)

    pixels, noise = rates[:64].mean(), rates[64:].mean()
    print(f"mean learned rate: {pixels:.2f} on pixels, {noise:.2f} on noise")
    scores = {k: m.evaluate(*test, verbose=0) for k, m in models.items()}
    for name, (loss, accuracy) in scores.items():
        print(f"{name:10s}  test loss {loss:.3f}, accuracy {accuracy:.3f}")
    return rates, scores


if __name__ == "__main__":
    main()
