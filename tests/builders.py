"""What many tests train with: batches, and Keras's own training on them."""

import keras
import numpy as np

import keras_hposgld as hs
from keras_hposgld.core.loop import batch_at
from keras_hposgld.data.arrays import ArrayData
from keras_hposgld.training.keras_problem import tensors


def has_version(module, major, minor):
    """Whether a module is of a version or newer."""
    own = tuple(int(part) for part in module.__version__.split(".")[:2])
    return own >= (major, minor)


def make_data(n=96, seed=0):
    """Targets of which two of six inputs know."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype("float32")
    y = x[:, :1] - x[:, 1:2] + 0.5 * rng.normal(size=(n, 1))
    return x, y.astype("float32")


def state(model):
    """Everything of a model and its optimizer but the hyperparameters."""
    owned = {
        id(variable)
        for owner in hs.find_hyperparameters(model)
        for variable in owner.hyperparameter_variables
    }
    variables = [*model.variables, *model.optimizer.variables]
    return [v.numpy() for v in variables if id(v) not in owned]


def values(model):
    """The values of all hyperparameters, in the order of the model."""
    return [
        np.asarray(value)
        for owner in hs.find_hyperparameters(model)
        for value in owner.hyperparameter_values().values()
    ]


def assert_equal(one, other, **tolerance):
    """Checks lists of arrays: bit for bit, or within a tolerance."""
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


class Batches(keras.utils.PyDataset):
    """A list of batches, as Keras reads data by position."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def train_plainly(model, data, batch_size, num_steps, num_chains):
    """Keras's own training, on the batches that a learner of seed 5 draws.

    Args:
        model: Compiled `keras.Model`.
        data: `(x, y)`.
        batch_size: Integer.
        num_steps: Integer, the length of a chain.
        num_chains: Integer.
    """
    batches = ArrayData("x", data, batch_size, seed=5)
    for x, y in batches.chains(num_steps).take(num_chains):
        for step in range(num_steps):
            model.train_on_batch(*batch_at((x, y), step))
    # What `fit` does at its end: only a moving average changes anything.
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return model


def keras_hypergradient(problem, inner, outer, **arguments):
    """What the fixture `run` calls for the hypergradient of a `KerasProblem`.

    Args:
        problem: `KerasProblem` without a state of layers.
        inner: The inner batch of each step.
        outer: The outer batch of each step.
        **arguments: As in `hypergradient`.
    """
    plain = hs.BilevelProblem(
        lambda h, p, b: problem.inner(h, p, inner, ([], []))[0],
        lambda h, p, b: problem.outer(h, p, outer, ([], [])),
    )

    def estimate(hyperparameters, weights):
        return hs.hypergradient(
            plain, hyperparameters, weights, **arguments
        ).hypergradient

    return estimate, tensors(problem.hyperparameters), tensors(problem.weights)
