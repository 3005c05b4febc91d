"""KerasTuner searches what has no gradient; each trial learns its own decays.

The search picks width and learning rate; a copy of the callback learns decays.
Trials share nothing: the best one learns the same when it is repeated alone.
Beside it, the search without the callback, which trains on the outer data too.

    python examples/tune_width_and_rate.py [--quick]
"""

import sys
import tempfile

import keras
import keras_tuner
import numpy as np
from sklearn.datasets import load_digits

import keras_hposgld as hs


def load_data():
    """Digits beside noise: to train, to learn decays, to judge and to test."""
    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    x = np.hstack([x / 4 - 1, rng.normal(size=(len(x), 256))])
    parts = np.split(rng.permutation(len(x)), [300, 500, 700])
    return [(x[part].astype("float32"), y[part]) for part in parts]


def build(hp):
    """A plain model. XLA would compile for longer than a trial takes."""
    keras.utils.set_random_seed(0)
    width = hp.Int("width", 16, 128, step=2, sampling="log")
    adam = keras.optimizers.Adam(hp.Float("rate", 1e-3, 1e-2, sampling="log"))
    layers = [keras.layers.Dense(width, "relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((320,)), *layers])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(adam, loss, metrics=["accuracy"], jit_compile=False)
    return model


def search(num_trials, data, **fit_arguments):
    """Prints the trials, and returns the best."""
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(
            build, "val_loss", max_trials=num_trials, seed=1, directory=folder
        )
        tuner.search(*data, **fit_arguments)
    trials = tuner.oracle.get_best_trials(num_trials)
    for trial in trials:
        print(trial.hyperparameters.values, f"val_loss {trial.score:.3f}")
        if trial.metrics.exists("median_strength"):  # the callback's
            median = trial.metrics.get_last_value("median_strength")
            print(f"    median of the learned decays: {median:.6f}")
    return trials[0]


def main(arguments):
    num_trials, epochs = (2, 2) if "--quick" in arguments else (5, 60)
    inner, outer, judging, test = load_data()
    both = list(map(np.concatenate, zip(inner, outer, strict=True)))
    everything = list(map(np.concatenate, zip(both, judging, strict=True)))
    fit = {"epochs": epochs, "validation_data": judging, "verbose": 0}
    decay = hs.regularizers.LearnableWeightDecay()
    learn = hs.callbacks.LearnHyperparameters(outer, regularizer=decay, seed=0)
    best = search(num_trials, inner, callbacks=[learn], **fit)
    learned = build(best.hyperparameters)
    alone = learned.fit(*inner, callbacks=[learn], **fit).history
    print(f"    best, alone: {alone['median_strength'][best.best_step]:.6f}")
    hs.refit(learned, *everything, epochs=best.best_step + 1, verbose=0)
    best = search(num_trials, both, **fit)
    plain = build(best.hyperparameters)
    plain.fit(*everything, epochs=best.best_step + 1, verbose=0)
    for name, model in (("learned decays", learned), ("no decay", plain)):
        loss, accuracy = model.evaluate(*test, verbose=0)
        print(f"{name}: test accuracy {accuracy:.3f}, cross-entropy {loss:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
