"""Chains and outer iterations, for many independent runs side by side.

A *chain* is a function of hyperparameters, a state and an integer seed, to the
hypergradient and the next state. The first state is the weights; an estimator's
chain resumes from its last `Estimate`. All have a leading axis of runs, as in
`exact_problems.py`. An *optimizer* is a function of a gradient to the step that
is subtracted.
"""

import numpy as np
import tensorflow as tf

import keras_hposgld as hs


def compile_chain(
    problem, estimator, learning_rate, temperature, noise_scale=1.0
):
    """A chain of the package, compiled by XLA but for its first call."""
    bilevel = hs.BilevelProblem(problem.inner, problem.outer)
    sampler = hs.SGLD(
        learning_rate, temperature=temperature, noise_scale=noise_scale
    )

    def estimate(hyperparameters, seed, **start):
        runs, num_steps = hyperparameters.shape[0], estimator.num_steps
        return hs.hypergradient(
            bilevel,
            hyperparameters,
            estimator=estimator,
            sampler=sampler,
            inner_batches=problem.batches(num_steps, runs, tf.stack([seed, 7])),
            seed=tf.stack([seed, 1]),
            **start,
        )

    first = tf.function(estimate, autograph=False)
    later = tf.function(estimate, autograph=False, jit_compile=True)

    def call(hyperparameters, state, seed):
        hyperparameters = tf.convert_to_tensor(hyperparameters)
        if isinstance(state, hs.estimators.Estimate):
            result = later(hyperparameters, tf.constant(seed), previous=state)
        else:
            start = tf.convert_to_tensor(state)
            result = first(hyperparameters, tf.constant(seed), params=start)
        return result.hypergradient, result

    return call


def exact_chain(problem, temperature):
    """The exact gradient in the place of a chain; it has no state."""

    def call(hyperparameters, state, seed):
        return problem.gradient(hyperparameters, temperature), state

    return call


def inside(problem, hyperparameters, gradient):
    """The gradient without what pushes out of the problem's bounds."""
    low, high = problem.bounds
    out = (hyperparameters <= low) & (gradient > 0)
    out |= (hyperparameters >= high) & (gradient < 0)
    return np.where(out, 0.0, gradient)


class GradientDescent:
    """The plain step of Algorithm 1, `rate * gradient`."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, gradient):
        return self.rate * gradient


class Adam:
    """Adam with Keras's defaults, for one descent."""

    def __init__(self, rate):
        self.rate, self.count = rate, 0
        self.first = self.second = 0.0

    def __call__(self, gradient):
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first = self.first / (1 - 0.9**self.count)
        second = self.second / (1 - 0.999**self.count)
        return self.rate * first / (np.sqrt(second) + 1e-7)


def descend(problem, chain, optimizer, num_outer, runs):
    """Outer iterations; the chain's state goes on from one to the next.

    Returns:
        Array `(num_outer, runs, size)`: the hyperparameters before each step.
    """
    hyperparameters, state = problem.start(runs)
    path = []
    for k in range(num_outer):
        path.append(hyperparameters)
        slope, state = chain(hyperparameters, state, k)
        step = optimizer(np.asarray(slope))
        hyperparameters = np.clip(hyperparameters - step, *problem.bounds)
    return np.array(path)
