"""What learns from noisy labels: the noise model, rivals and oracles.

A method is a function of a task and a seed. It returns a function from inputs
to probabilities, and the share of flipped labels that it found, or `None`.
"""

import keras
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

import keras_hposgld as hs

STEPS = 2000
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PLAIN = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def network(task, hidden=None):
    hidden = task.hidden if hidden is None else hidden
    return keras.Sequential(
        [
            keras.Input(task.train[0].shape[1:]),
            *(keras.layers.Dense(units, "tanh") for units in hidden),
            keras.layers.Dense(task.num_classes),
        ]
    )


def predictor(model):
    return lambda x: np.asarray(
        keras.ops.softmax(model.predict(x, batch_size=1000, verbose=0))
    )


def noise_model(task, noise, *first):
    return hs.losses.NoisyLabelCrossentropy(
        task.num_classes, noise, *first, from_logits=True
    )


def found_by(loss, probabilities):
    """The share of flipped labels, over the classes that are predicted."""
    kept = np.diag(loss.noise_matrix())
    return float(1 - probabilities.mean(0) @ kept)


def evidence(noise, times=1, is_linear=False):
    def run(task, seed):
        loss = noise_model(task, noise) if noise else PLAIN
        hidden = () if is_linear else task.hidden
        learner = hs.BilevelModel(network(task, hidden), seed=seed)
        learner.compile(
            hs.SGLD("auto", seed=seed),
            loss,
            hypergradient="evidence",
            steps_per_execution=100,
        )
        steps = times * STEPS
        learner.fit(*task.train[:2], steps_per_epoch=steps, verbose=0)
        predict = predictor(learner)
        if not noise:
            return predict, None
        return predict, found_by(loss, predict(task.train[0]))

    return run


def adam(make_loss, choose=lambda task: task.train[:2]):
    def run(task, seed):
        model, loss = network(task), make_loss(task)
        model.compile(keras.optimizers.Adam(1e-3), loss)
        x, y = choose(task)
        model.fit(x, y, batch_size=64, epochs=task.epochs, verbose=0)
        return predictor(model), None

    return run


def true_matrix(task):
    """T of the training labels, a thousandth of it spread evenly."""
    counts = np.zeros((task.num_classes, task.num_classes))
    np.add.at(counts, (task.train[2], task.train[1]), 1)
    matrix = counts / counts.sum(1, keepdims=True)
    return 0.999 * matrix + 0.001 / task.num_classes


def forward(task):
    loss = noise_model(task, "matrix")
    loss.variable.assign(np.log(true_matrix(task)))  # also where it is weak
    return loss


def generalized(task, q=0.7):
    def loss(y_true, y_pred):
        p = keras.ops.softmax(y_pred)
        one_hot = keras.ops.one_hot(
            keras.ops.reshape(y_true, (-1,)), task.num_classes
        )
        return (1 - keras.ops.sum(one_hot * p, -1) ** q) / q

    return loss


def by_outer(noise, learned):
    """Adam, with what the callback learns on the outer examples.

    Args:
        noise: As in `noise_model`, or `None` for none.
        learned: Function to arguments of the callback, new ones for each run.
    """

    def run(task, seed):
        model = network(task)
        loss = noise_model(task, noise) if noise else PLAIN
        model.compile(keras.optimizers.Adam(1e-3), loss)
        callback = hs.callbacks.LearnHyperparameters(
            task.outer, batch_size=64, outer_loss=PLAIN, seed=seed, **learned()
        )
        model.fit(
            *task.train[:2],
            batch_size=64,
            epochs=task.epochs,
            callbacks=[callback],
            verbose=0,
        )
        predict = predictor(model)
        if not noise:
            return predict, None
        return predict, found_by(loss, predict(task.train[0]))

    return run


def matrix_apart():
    rate = keras.optimizers.Adam(0.1)
    return dict(chain="apart", every=20, hyper_optimizer=rate)


def decay():
    return dict(regularizer=hs.regularizers.LearnableWeightDecay(0.1))


def cleanlab(task, seed):
    from cleanlab.classification import CleanLearning  # may not be there

    strength = 1.0 if task.hidden else 1e-2
    inner = LogisticRegression(C=strength, max_iter=300)
    model = CleanLearning(inner, seed=seed).fit(*task.train[:2])
    return model.predict_proba, None


def logistic(choose):
    def run(task, seed):
        search = GridSearchCV(
            LogisticRegression(max_iter=200), {"C": STRENGTHS}, cv=3
        )
        return search.fit(*choose(task)).predict_proba, None

    return run


def joined(task):
    (x, y, _), (x_outer, y_outer) = task.train, task.outer
    return np.concatenate([x, x_outer]), np.concatenate([y, y_outer])


METHODS = {
    "plain": evidence(None),
    "rate": evidence("rate"),
    "matrix": evidence("matrix"),
    "adam": adam(lambda task: PLAIN),
    "gce": adam(generalized),
    "forward": adam(forward),
    "truth": adam(lambda task: PLAIN, lambda task: task.train[::2]),
    "cleanlab": cleanlab,
    "logistic": logistic(lambda task: task.train[:2]),
    "plain_long": evidence(None, times=4),
    "rate_long": evidence("rate", times=4),
    "plain_linear": evidence(None, is_linear=True),
    "rate_linear": evidence("rate", is_linear=True),
}
OUTER = {
    "right": adam(lambda task: PLAIN, lambda task: task.outer),
    "both": adam(lambda task: PLAIN, joined),
    "matrix_outer": by_outer("matrix", matrix_apart),
    "decay_outer": by_outer(None, decay),
    "matrix_decay": by_outer("matrix", decay),
    "logistic_right": logistic(lambda task: task.outer),
    "logistic_both": logistic(joined),
}
