"""Which auxiliary tasks help? One learned weight for the loss of each output.

Of few digits the class is known. All have auxiliary targets: odd or not, the
number of loops, and ten random numbers, which only do harm. Run it by
`python examples/learn_output_weights.py`.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_hposgld as hs

CE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LOSSES = {"digit": CE, "odd": CE, "loops": CE, "noise": "mse"}


def error(y, logits):  # a smooth error rate: the chance of the other classes
    chance = keras.ops.softmax(logits) * keras.ops.one_hot(y, 10)
    return 1 - keras.ops.sum(chance, -1)


def load_data(seed, begin, end):
    """Inputs, targets, sample weights; zero where the class is not known."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(1797)[begin:end]
    x, y = (part[rows] for part in load_digits(return_X_y=True))
    loops = np.array([1, 0, 0, 0, 0, 0, 1, 0, 2, 1])[y]
    noise = 3 * rng.normal(size=(len(y), 10))
    known = np.repeat([1.0, 0.0, 1.0], [50, 250, 1497])[begin:end]
    weights = dict.fromkeys(LOSSES, np.ones(len(x)))
    weights["digit"] = known / known.mean()
    y = {"digit": y, "odd": y % 2, "loops": loops, "noise": noise}
    return (x / 16).astype("float32"), y, weights


def make_model(seed):
    keras.utils.set_random_seed(seed)
    layer, x = keras.layers.Dense, keras.Input((64,))
    hidden = layer(32, "relu")(layer(32, "relu")(x))
    units = zip(LOSSES, (10, 2, 3, 10), strict=True)
    return keras.Model(x, {k: layer(n, name=k)(hidden) for k, n in units})


def learn(seed, chains):
    """Weights for training from scratch: each chain begins at the start."""
    loss = hs.losses.LearnableOutputWeights(LOSSES, fixed="digit")
    rate = keras.optimizers.schedules.CosineDecay(0.3, chains)
    outer = dict(hyper_optimizer=keras.optimizers.Adam(rate), start="initial")
    outer |= {"hypergradient": hs.estimators.RMD(num_steps=200)}
    learner = hs.BilevelModel(make_model(seed), seed=seed)
    adam = keras.optimizers.Adam(0.005)
    learner.compile(adam, loss, outer_loss={"digit": error}, **outer)
    x, y, weights = load_data(seed, 0, 300)
    fit = dict(outer_batch_size=150, steps_per_epoch=200 * chains, verbose=0)
    fit["outer_data"] = load_data(seed, 300, 450)
    learner.fit(x, y, 50, sample_weight=weights, **fit)
    return list(loss.weights.values())


def accuracy(seed, weights, end, epochs):
    losses = dict(zip(LOSSES, weights, strict=True))
    model, (x, y, weights) = make_model(seed), load_data(seed, 0, end)
    model.compile(keras.optimizers.Adam(0.005), LOSSES, losses)
    model.fit(x, y, 50, epochs, verbose=0, sample_weight=weights)
    x, y, _ = load_data(seed, 450, None)
    return np.mean(model(x)["digit"].numpy().argmax(1) == y["digit"])


def main(quick=False):
    chains, epochs, *seeds = (2, 2, 6) if quick else (30, 34, 6, 7, 8, 9)
    rows = {"main": [1, 0, 0, 0], "all": [1, 1, 1, 1], "good": [1, 1, 1, 0]}
    for seed in seeds:
        for name, weights in (rows | {"learned": learn(seed, chains)}).items():
            found = [accuracy(seed, weights, n, epochs) for n in (300, 450)]
            print(seed, name, np.round(weights, 2), np.round(found, 3))


if __name__ == "__main__":
    main()
