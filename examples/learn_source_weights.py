"""Whom to believe? One learned weight for each annotator.

scikit-learn's digits, with votes of eight simulated annotators: five are right
on 75 %, two on 25 %, and one calls every digit a zero. 50 images with the right
label tell whom to believe.

    python examples/learn_source_weights.py [--epochs 40]
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

import keras_hposgld as hs  # noqa: E402

SKILLS = (0.75, 0.75, 0.75, 0.75, 0.75, 0.25, 0.25)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def load_data(seed=0):
    """Images and votes of 1200, 50 with labels, and 547 to test."""
    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(y))
    x, y = x[order].astype("float32") / 16, y[order]
    votes = np.full((1200, 8), -1)  # -1: abstains
    for source, skill in enumerate(SKILLS):
        wrong = rng.uniform(size=1200) > skill
        label = np.where(wrong, rng.integers(10, size=1200), y[:1200])
        speaks = rng.uniform(size=1200) < 0.2
        votes[speaks, source] = label[speaks]
    votes[:, -1] = 0
    return (x[:1200], votes), (x[1200:1250], y[1200:1250]), (x[1250:], y[1250:])


def make_learner(weights):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    learner = hs.BilevelModel(model, example_weights=weights, seed=0)
    learner.compile(
        optimizer=hs.SGLD(0.5, seed=0),
        loss=LOSS,
        metrics=["accuracy"],
        # A source with many votes has a large gradient: it is to move faster.
        hyper_optimizer=keras.optimizers.Adam(0.3, epsilon=0.01),
    )
    return learner


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args(arguments).epochs
    (x, votes), clean, test = load_data()
    keras.utils.set_random_seed(0)
    learner = make_learner(hs.SourceWeights(8))
    plain = dict(sources="votes", optimizer="adam", epochs=30, verbose=0)
    learner.refit(x, votes, **plain)
    results = {"all sources alike": learner.evaluate(*test, verbose=0)[1]}
    learner.fit(
        *(x, votes),
        sources="votes",
        outer_data=clean,
        batch_size=100,
        epochs=epochs,
        verbose=0,
    )
    learner.refit(x, votes, **plain)
    results["learned weights"] = learner.evaluate(*test, verbose=0)[1]
    print("accuracy on test images:", results)
    print("weights:", learner.example_weights.numpy().round(3))
    return results, learner.example_weights.numpy()


if __name__ == "__main__":
    main()
