"""Strengths that are learned by the exact hypergradient, with a prior.

The log strengths are `m + d`. The number `m` and the deviations `d` minimize

    outer loss + penalty(d)

    Laplace  penalty = 2 sigma^2 / (n scale) * sum |d|
    Gauss    penalty = sigma^2 / (n scale^2) * sum d^2

which is the posterior mode under a prior of the given scale, up to the factor
`2 sigma^2 / n`. Here `sigma^2` is the outer loss of the best scalar and `n` the
number of outer residuals: examples times outputs.
"""

import numpy as np
import scipy.optimize

LOWEST, HIGHEST = -18.0, 7.0  # of log strengths, for standardized data
FARTHEST = 8.0  # of a deviation from the mean
GRANULARITIES = {  # the shape of d
    "tensor": lambda inputs, outputs: (1, 1),
    "input": lambda inputs, outputs: (inputs, 1),
    "output": lambda inputs, outputs: (1, outputs),
    "parameter": lambda inputs, outputs: (inputs, outputs),
}


def uniform(folds, m):
    """Log strengths that all equal `m`."""
    return np.full((folds.x.shape[1], 1), float(m))


def best_scalar(folds):
    """The best common log strength, and its outer loss.

    A grid finds the valley, since the loss can have several, and Brent's method
    finds its bottom.
    """
    grid = np.linspace(LOWEST, HIGHEST, 26)
    values = [folds.value(uniform(folds, m)) for m in grid]
    best = int(np.argmin(values))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = scipy.optimize.minimize_scalar(
        lambda m: folds.value(uniform(folds, m)),
        bounds=around,
        method="bounded",
        options={"xatol": 1e-3},
    )
    if found.fun < values[best]:
        return float(found.x), float(found.fun)
    return float(grid[best]), float(values[best])


class Deviations:
    """The penalized outer loss as a function of `m` and `d`.

    Args:
        folds: `Folds`.
        granularity: A key of `GRANULARITIES`.
        prior: `"laplace"`, `"gauss"` or `None`.
        scale: Float `> 0`, the scale of the prior.
        noise: Float, `sigma^2`.
    """

    def __init__(self, folds, granularity, prior, scale, noise):
        outputs = folds.y.shape[1]
        self.folds, self.prior = folds, prior
        self.shape = GRANULARITIES[granularity](folds.x.shape[1], outputs)
        base = noise / (folds.num_outer * outputs)
        self.weight = {
            "laplace": 2 * base / scale,
            "gauss": base / scale**2,
            None: 0.0,
        }[prior]

    def logs(self, m, d):
        """Log strengths `(inputs, 1)` or `(inputs, outputs)`."""
        rows = self.folds.x.shape[1]
        return np.broadcast_to(m + d.reshape(self.shape), (rows, self.shape[1]))

    def smooth(self, m, d):
        """The outer loss and its derivatives by `m` and `d`."""
        value, gradient = self.folds.value_and_gradient(self.logs(m, d))
        if self.shape[0] == 1:
            gradient = gradient.sum(axis=0)
        return value, gradient.sum(), gradient.ravel()

    def split(self, point):
        """The objective at `(m, p, q)`, where d = p - q and p, q >= 0.

        Where `p` or `q` is 0, `p + q` is `|d|`: so Laplace's prior is linear.
        """
        m, (p, q) = point[0], np.split(point[1:], 2)
        value, by_m, by_d = self.smooth(m, p - q)
        if self.prior == "laplace":
            value += self.weight * np.sum(p + q)
            pull = self.weight, self.weight
        else:
            value += self.weight * np.sum((p - q) ** 2)
            pull = 2 * self.weight * (p - q), 2 * self.weight * (q - p)
        return value, np.concatenate([[by_m], by_d + pull[0], -by_d + pull[1]])


def learn(folds, start, noise, granularity="input", prior="laplace", scale=1.0):
    """Minimizes the penalized outer loss from the best scalar on.

    With a prior some tens of iterations suffice. Without one, strengths drift
    to their bounds, and the limit of iterations may end that.

    Args:
        folds: `Folds`.
        start: Float, the best common log strength. `d` starts at 0.
        noise: Float, its outer loss.
        granularity, prior, scale: See `Deviations`.

    Returns:
        Log strengths `(inputs, 1)` or `(inputs, outputs)`, and the deviations
        as a vector.
    """
    problem = Deviations(folds, granularity, prior, scale, noise)
    size = int(np.prod(problem.shape))
    point = np.concatenate([[start], np.zeros(2 * size)])
    found = scipy.optimize.minimize(
        problem.split,
        point,
        jac=True,
        method="L-BFGS-B",
        bounds=[(LOWEST, HIGHEST), *[(0.0, FARTHEST)] * (2 * size)],
        options={"maxiter": 100, "ftol": 1e-10, "gtol": 1e-7},
    )
    p, q = np.split(found.x[1:], 2)
    return problem.logs(found.x[0], p - q), p - q
