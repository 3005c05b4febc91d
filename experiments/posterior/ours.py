"""Strengths learned by the evidence, at the defaults of `keras_hposgld`.

One setting for all sets: a network with two hidden layers, and a linear model.
Predictions are averages over the kept samples of the weights; the deviation of
a regression holds their spread and the learned noise.
"""

import keras
import numpy as np

import keras_hposgld as hs

HIDDEN = (50, 50)
NUM_STEPS = 3000
MANY_STEPS = 8000  # of a network with few examples, where steps are cheap
FEW = 1000
NUM_DRAWS = 6000  # of a linear model whose weights are drawn
NUM_SAMPLES = 64
COLD = 0.3
EPOCHS = 20


def network(x, y, x_test, task, seed, **options):
    """A network with a strength for each input."""
    hidden = [keras.layers.Dense(number, "tanh") for number in HIDDEN]
    return fitted(hidden, x, y, x_test, task, seed, **options)


def network_drawn(x, y, x_test, task, seed):
    """The same, whose strengths are drawn given the weights."""
    return network(x, y, x_test, task, seed, update="gibbs")


def network_cold(x, y, x_test, task, seed):
    """The same as the first, at less than the temperature of the posterior."""
    return network(x, y, x_test, task, seed, temperature=COLD / len(x))


def linear(x, y, x_test, task, seed):
    """A linear model; the weights of a regression may be drawn."""
    return fitted([], x, y, x_test, task, seed)


def fitted(hidden, x, y, x_test, task, seed, update="auto", temperature=0.0):
    keras.utils.set_random_seed(seed)
    is_regression = task == "regression"
    number = 1 if is_regression else len(np.unique(y))
    model = keras.Sequential(
        [keras.Input(x.shape[1:]), *hidden, keras.layers.Dense(number)]
    )
    learner = hs.BilevelModel(model, seed=seed)
    learner.compile(
        hs.SGLD("auto", temperature, seed=seed),
        hs.losses.LearnableGaussianLoss()
        if is_regression
        else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        hypergradient=hs.estimators.Evidence(update=update),
        posterior_samples=NUM_SAMPLES,
        steps_per_execution=100,
    )
    steps = NUM_DRAWS
    if hidden:
        steps = MANY_STEPS if len(x) < FEW else NUM_STEPS
    learner.fit(
        *(x, y[:, None] if is_regression else y),
        epochs=EPOCHS,
        steps_per_epoch=steps // EPOCHS,
        verbose=0,
    )
    samples = learner.posterior_predict(x_test)
    keras.backend.clear_session()
    if not is_regression:
        odds = np.exp(samples - samples.max(axis=-1, keepdims=True))
        return (odds / odds.sum(axis=-1, keepdims=True)).mean(axis=0)
    *_, noise = learner.hyperparameter_values().values()
    variance = samples.var(axis=0) + float(noise) ** 2
    return samples.mean(axis=0)[:, 0], np.sqrt(variance)[:, 0]


METHODS = {
    "evidence": network,
    "evidence_gibbs": network_drawn,
    "evidence_cold": network_cold,
    "evidence_linear": linear,
}
