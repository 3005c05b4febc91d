"""Problems whose expected outer objective is known by quadrature.

    quartic     one weight, one hyperparameter; convex
    correlated  two weights, three hyperparameters; convex, not quadratic
    wells       one weight, one hyperparameter; two wells, barrier about 1

An energy works on NumPy arrays and on tensors alike. Chains run side by side:
each hyperparameter and each weight is a vector with one entry for each chain.
"""

import numpy as np
import tensorflow as tf

import keras_hposgld as hs

STEP = 1e-4  # of the central differences


class Quartic:
    """exp(-energy / tau) on a line; the page's first example."""

    hyperparameters, start = (0.5,), (0.7,)
    grids = (np.linspace(-4.0, 4.0, 20_001),)

    def energy(self, hypers, weights):
        (s,), (w,) = hypers, weights
        return w**4 / 4 + s * w**2 / 2 - w

    def outer(self, hypers, weights):
        (s,), (w,) = hypers, weights
        return tf.sin(2 * w) + s * w


class Correlated:
    """Neither axis is one of the curvature."""

    hyperparameters, start = (1.2, 0.9, 0.4), (0.0, 0.0)
    grids = (np.linspace(-4.0, 6.0, 1601), np.linspace(-6.0, 5.0, 1601))

    def energy(self, hypers, weights):
        (a, b, c), (x, y) = hypers, weights
        quadratic = a * x**2 / 2 + b * y**2 / 2 + 0.6 * x * y
        return quadratic + 0.25 * (x - c * y) ** 4 - x + 0.5 * y

    def outer(self, hypers, weights):
        x, y = weights
        return tf.sin(x) + x * y**2 + 0.3 * hypers[1] * y


class Wells:
    """A double well that the hyperparameter tilts.

    (w^2 - 1)^2 up to a constant, so that w^2 - 1 can stand for a prediction.
    """

    hyperparameters, start = (0.2,), (-1.0,)
    grids = (np.linspace(-4.0, 4.0, 20_001),)

    def energy(self, hypers, weights):
        (s,), (w,) = hypers, weights
        return (w**2 - 1) ** 2 + s * w

    def marked_energy(self, hypers, weights):
        """The energy, for the Gauss-Newton matrix."""
        (s,), (w,) = hypers, weights
        return hs.mark_predictions(w**2 - 1) ** 2 + s * w

    def outer(self, hypers, weights):
        return weights[0]


def exact(problem, temperature):
    """Derivatives of E[f] with respect to the hyperparameters."""
    weights = np.meshgrid(*problem.grids, indexing="ij")

    def mean(hypers):
        energy = problem.energy(hypers, weights)
        density = np.exp(-(energy - energy.min()) / temperature)
        outer = np.asarray(problem.outer(hypers, weights))
        return np.sum(density * outer) / np.sum(density)

    at = np.array(problem.hyperparameters)
    units = STEP * np.eye(len(at))
    return np.array([(mean(at + e) - mean(at - e)) / (2 * STEP) for e in units])


class Chains:
    """Independent chains of one estimator, compiled by XLA."""

    def __init__(self, problem, estimator, sampler, number, energy=None):
        energy = energy or problem.energy
        self.problem, self.number = problem, number
        bilevel = hs.BilevelProblem(
            lambda h, w, batch: tf.reduce_sum(energy(h, w)),
            lambda h, w, batch: tf.reduce_sum(problem.outer(h, w)),
        )

        @tf.function(autograph=False, jit_compile=True)
        def run(seed, params, previous):
            return hs.hypergradient(
                bilevel,
                self.filled(problem.hyperparameters),
                params,
                estimator=estimator,
                sampler=sampler,
                seed=seed,
                previous=previous,
            )

        self._run = run

    def filled(self, values):
        return [
            tf.fill([self.number], tf.constant(value, tf.float64))
            for value in values
        ]

    def __call__(self, seed=1, params=None, previous=None):
        """An estimate whose entries are those of the chains."""
        if params is None and previous is None:
            params = self.filled(self.problem.start)
        return self._run(tf.constant(seed), params, previous)


def relative_bias(draws, truth):
    """In per cent, with its standard error."""
    draws = np.asarray(draws)
    error = draws.std() / np.sqrt(len(draws))
    return 100 * (draws.mean() - truth) / abs(truth), 100 * error / abs(truth)
