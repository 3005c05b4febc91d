"""What minibatches do to AdjointSGLD: weights of examples, learned.

Linear regression with a weight for each of 12 examples and an L2 penalty, at
temperature 0. The mixed derivative and the Hessian of a step come from one
batch, so they are correlated with each other and with the path. The mean of
long chains is held to two derivatives: the implicit one at the minimum of the
whole objective, and that of the law of the very SGD chain (by the Jacobian of
its steps, averaged over the chain). The figures are |difference| / |exact|,
medians over data sets with the least and the largest.

    python experiments/adjoint/minibatches.py [--quick]
        [--page docs/adjoint_sgld.md]
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from bias import AfterTheStep  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "theory"))

import reporting  # noqa: E402

NUM_EXAMPLES, NUM_WEIGHTS, PENALTY = 12, 3, 0.1
TIME = 40.0  # the burn-in in units of step size times number of steps
CASES = ((2, 0.1), (2, 0.02), (6, 0.05), (6, 0.02), (12, 0.05))
NUM_DATA_SETS, NUM_CHAINS, NUM_SAMPLES = 5, 12, 20_000


class Regression:
    """Data, and the two exact derivatives in NumPy."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.x = rng.normal(size=(NUM_EXAMPLES, NUM_WEIGHTS))
        truth = rng.normal(size=NUM_WEIGHTS)
        self.y = self.x @ truth + rng.normal(size=NUM_EXAMPLES)
        self.x_outer = rng.normal(size=(NUM_EXAMPLES, NUM_WEIGHTS))
        self.y_outer = self.x_outer @ truth
        self.example_weights = rng.uniform(0.5, 1.5, NUM_EXAMPLES)

    def inner(self, example_weights, weights, batch):
        x, y = tf.gather(self.x, batch), tf.gather(self.y, batch)
        error = tf.linalg.matvec(x, weights) - y
        loss = tf.reduce_mean(tf.gather(example_weights, batch) * error**2)
        return loss + PENALTY * tf.reduce_sum(weights**2)

    def outer(self, example_weights, weights, batch):
        error = tf.linalg.matvec(self.x_outer, weights) - self.y_outer
        return tf.reduce_mean(error**2)

    def outer_gradient(self, weights):
        error = weights @ self.x_outer.T - self.y_outer
        return 2 / NUM_EXAMPLES * error @ self.x_outer

    def parts(self, weights, batch):
        """Gradient, Hessian and mixed derivative, a batch for each chain."""
        x, y, s = self.x[batch], self.y[batch], self.example_weights[batch]
        error = np.einsum("nbd,nd->nb", x, weights) - y
        scale = 2 / batch.shape[1]
        gradient = scale * np.einsum("nb,nb,nbd->nd", s, error, x)
        gradient += 2 * PENALTY * weights
        hessian = scale * np.einsum("nb,nbd,nbe->nde", s, x, x)
        hessian += 2 * PENALTY * np.eye(NUM_WEIGHTS)
        mixed = np.zeros((len(batch), NUM_WEIGHTS, NUM_EXAMPLES))
        for column in range(batch.shape[1]):
            rows = np.arange(len(batch))
            mixed[rows, :, batch[:, column]] += (
                scale * error[:, column, None] * x[:, column]
            )
        return gradient, hessian, mixed

    def implicit(self):
        """The derivative at the minimum of the whole objective."""
        everything = np.arange(NUM_EXAMPLES)[np.newaxis]
        weights = np.zeros((1, NUM_WEIGHTS))
        for _ in range(2):  # Newton's method, exact after one step
            gradient, hessian, mixed = self.parts(weights, everything)
            weights = weights - np.linalg.solve(hessian[0], gradient[0])
        q = np.linalg.solve(hessian[0], self.outer_gradient(weights)[0])
        return -q @ mixed[0]

    def of_the_chain(self, size, rate, num_steps, num_chains=2000, seed=1):
        """Derivative of E[f] in the law of SGD, by the chain's Jacobian."""
        rng = np.random.default_rng(seed)
        weights = np.zeros((num_chains, NUM_WEIGHTS))
        jacobian = np.zeros((num_chains, NUM_WEIGHTS, NUM_EXAMPLES))
        total, count = 0.0, 0
        for step in range(num_steps):
            order = rng.random((num_chains, NUM_EXAMPLES)).argsort(axis=1)
            gradient, hessian, mixed = self.parts(weights, order[:, :size])
            jacobian = jacobian - rate * (hessian @ jacobian + mixed)
            weights = weights - rate * gradient
            if step >= TIME / rate:
                v = self.outer_gradient(weights)
                total = total + np.einsum("nd,nde->e", v, jacobian)
                count += num_chains
        return total / count


def mean_of_chains(problem, kind, size, rate, num_samples, num_chains):
    """The mean hypergradient of independent chains."""
    burn_in = round(TIME / rate)
    estimator = kind(burn_in, num_samples)
    bilevel = hs.BilevelProblem(problem.inner, problem.outer)
    sampler = hs.SGLD(rate)

    @tf.function(autograph=False, jit_compile=True)
    def chain(batches):
        return hs.hypergradient(
            bilevel,
            tf.constant(problem.example_weights),
            tf.zeros([NUM_WEIGHTS], tf.float64),
            estimator=estimator,
            sampler=sampler,
            inner_batches=batches,
        ).hypergradient

    rng = np.random.default_rng(2)
    draws = []
    for _ in range(num_chains):
        shape = estimator.num_steps, NUM_EXAMPLES
        order = rng.random(shape).argsort(axis=1)[:, :size]
        draws.append(chain(tf.constant(order)).numpy())
    draws = np.array(draws)
    error = np.linalg.norm(draws.std(axis=0)) / np.sqrt(num_chains)
    return draws.mean(axis=0), error


def distances(problem, size, rate, num_samples, num_chains):
    """Of both kinds to both targets, and between the targets."""
    targets = (
        problem.implicit(),
        problem.of_the_chain(size, rate, round(2 * TIME / rate)),
    )
    found = []
    for kind in (hs.estimators.AdjointSGLD, AfterTheStep):
        mean, error = mean_of_chains(
            problem, kind, size, rate, num_samples, num_chains
        )
        found += [relative(mean, target) for target in targets]
    return [*found, relative(*targets[::-1])], error / np.linalg.norm(mean)


def relative(value, target):
    return np.linalg.norm(value - target) / np.linalg.norm(target)


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    cases, seeds = CASES, range(NUM_DATA_SETS)
    settings = NUM_SAMPLES, NUM_CHAINS
    if options.quick:
        cases, seeds, settings = CASES[:1], range(2), (2000, 4)
    rows, largest_error = [], 0.0
    for size, rate in cases:
        found = []
        for seed in seeds:
            one, error = distances(Regression(seed), size, rate, *settings)
            largest_error = max(largest_error, error)
            found.append(one)
        rows.append((size, rate, np.array(found)))
    reporting.publish(
        "minibatches",
        [
            "batch, α",
            "to the implicit derivative",
            "to that of the SGD chain",
            "q after the step: implicit",
            "q after the step: chain",
            "between the two",
        ],
        [
            [
                f"{size} of {NUM_EXAMPLES}, {rate:g}",
                *(
                    f"{np.median(column):.3f} "
                    f"({column.min():.3f} to {column.max():.3f})"
                    for column in found.T
                ),
            ]
            for size, rate, found in rows
        ],
        options.page,
    )
    print(f"largest relative standard error: {largest_error:.4f}")
    return rows


if __name__ == "__main__":
    main()
