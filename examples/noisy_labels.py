"""Trains on labels of which 30 per cent are wrong, and finds out how many.

scikit-learn's digits: half of the images for training, with labels flipped at
random, half for the test. No label is known to be right. The noise model is
learned with the weights by the evidence. The obvious baseline is the same
network, trained by Adam with a plain cross-entropy.

    python examples/noisy_labels.py [--quick]
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import train_test_split  # noqa: E402

import keras_hposgld as hs  # noqa: E402

FLIPPED = 0.3


def load_data(seed=0):
    """Training images with noisy and true labels; test images with true."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16 - 0.5).astype("float32")
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.5, random_state=seed, stratify=y
    )
    rng = np.random.default_rng(seed)
    other = (y + rng.integers(1, 10, len(y))) % 10
    noisy = np.where(rng.uniform(size=len(y)) < FLIPPED, other, y)
    return x, noisy, y, x_test, y_test


def network():
    hidden = keras.layers.Dense(50, "tanh")
    return keras.Sequential(
        [keras.Input((64,)), hidden, keras.layers.Dense(10)]
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps")
    options = parser.parse_args(arguments)
    keras.utils.set_random_seed(0)
    x, noisy, true, x_test, y_test = load_data()

    plain = network()
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(keras.optimizers.Adam(), cross_entropy)
    plain.fit(x, noisy, epochs=2 if options.quick else 60, verbose=0)

    loss = hs.losses.NoisyLabelCrossentropy(10, from_logits=True)
    learner = hs.BilevelModel(network(), seed=0)
    learner.compile(loss=loss, hypergradient="evidence")
    steps = 200 if options.quick else 2000
    learner.fit(x, noisy, steps_per_epoch=steps, verbose=0)

    scores = {}
    for name, model in (("cross-entropy", plain), ("noise model", learner)):
        right = model.predict(x_test, verbose=0).argmax(axis=1) == y_test
        scores[name] = right.mean()
        print(f"{name:14s} right on test images: {scores[name]:.3f}")
    rate = float(loss.constrained())
    print(f"flipped: {np.mean(noisy != true):.3f}, found: {rate:.3f}")
    doubt = loss.wrong_label_probability(noisy, learner.predict(x, verbose=0))
    auc = roc_auc_score(noisy != true, doubt)
    print(f"wrong labels told from right ones: AUC {auc:.3f}")
    return scores, rate, auc


if __name__ == "__main__":
    main()
