"""Exact ridge regression on several folds, and its exact hypergradient.

Conventions of this folder:

* `x` has shape `(examples, inputs)`, `y` has shape `(examples, outputs)`;
* the inner objective is `mean over examples of |y - x w|^2 + sum s w^2`, so a
  strength `s` means the same for any number of examples;
* an intercept without a penalty stands beside `w`: both parts of a fold are
  centered by the mean of its inner part;
* the outer loss is the mean squared error over all outer examples of all folds
  and over the outputs;
* `logs` are logarithms of strengths, of shape `(inputs, 1)` where the outputs
  share them, else `(inputs, outputs)`.
"""

import numpy as np


def parts_of(number, num_parts, rng):
    """Splits `range(number)` at random into parts of about equal size."""
    return np.array_split(rng.permutation(number), num_parts)


def fit(x, y, logs):
    """The ridge solution of centered data, of shape `(inputs, outputs)`."""
    second, cross = x.T @ x / len(x), x.T @ y / len(x)
    columns = [
        np.linalg.solve(second + np.diag(np.exp(log)), right)
        for log, right in zip(logs.T, _columns(cross, logs), strict=True)
    ]
    return np.concatenate(columns, axis=1)


def _columns(moment, logs):
    """Right-hand sides `(..., systems, inputs, rows)`, one system a column."""
    if logs.shape[1] == 1:
        return moment[..., None, :, :]
    return np.swapaxes(moment, -1, -2)[..., None]


def squared_errors(x, y, inner, outer, logs):
    """Squared errors `(examples, outputs)` on `outer` of a fit on `inner`."""
    x_mean, y_mean = x[inner].mean(axis=0), y[inner].mean(axis=0)
    weights = fit(x[inner] - x_mean, y[inner] - y_mean, logs)
    return (y[outer] - y_mean - (x[outer] - x_mean) @ weights) ** 2


class Folds:
    """The outer loss of some folds as a function of the log strengths.

    A value costs one solution of the inner equations per fold, and the gradient
    one more, whatever the number of strengths. Both need only moments.

    Args:
        x: Array `(examples, inputs)`.
        y: Array `(examples, outputs)`.
        pairs: List of pairs of index arrays: the inner and the outer examples
            of each fold.
    """

    def __init__(self, x, y, pairs):
        self.x, self.y, self.pairs = x, y, pairs
        self.num_outer = sum(len(outer) for _, outer in pairs)
        moments, self._square = [], 0.0
        for inner, outer in pairs:
            x_mean, y_mean = x[inner].mean(axis=0), y[inner].mean(axis=0)
            a, b = x[inner] - x_mean, y[inner] - y_mean
            c, d = x[outer] - x_mean, y[outer] - y_mean
            size, share = len(inner), self.num_outer * y.shape[1]
            moments.append(
                (a.T @ a / size, a.T @ b / size, c.T @ c / share, c.T @ d)
            )
            self._square += np.sum(d**2) / share
        self._inner_second, self._inner_cross, self._outer_second, cross = (
            np.array(moment) for moment in zip(*moments, strict=True)
        )
        self._outer_cross = cross / (self.num_outer * y.shape[1])

    @classmethod
    def cross(cls, x, y, parts):
        """Each part in turn is the outer one, all others are the inner."""
        pairs = [
            (np.concatenate(parts[:k] + parts[k + 1 :]), part)
            for k, part in enumerate(parts)
        ]
        return cls(x, y, pairs)

    def _solve(self, logs):
        """Inner systems, weights, the value, and `dL / dw / 2`."""
        diagonals = [np.diag(column) for column in np.exp(logs).T]
        system = self._inner_second[:, None] + np.stack(diagonals)
        weights = np.linalg.solve(system, _columns(self._inner_cross, logs))
        cross = _columns(self._outer_cross, logs)
        product = self._outer_second[:, None] @ weights
        value = np.sum(weights * (product - 2 * cross)) + self._square
        return system, weights, value, product - cross

    def value(self, logs):
        return self._solve(logs)[2]

    def value_and_gradient(self, logs):
        """The outer loss, and its derivative shaped like `logs`.

        With `A w = b` the inner normal equations, `A = x'x / n + diag(s)`:
        `dL / d log s_j = -s_j w_j q_j`, where `A q = dL / dw`.
        """
        system, weights, value, half = self._solve(logs)
        adjoint = np.linalg.solve(system, 2 * half)
        through = np.sum(weights * adjoint, axis=(0, 3)).T
        return value, -np.exp(logs) * through

    def squared_errors(self, logs):
        """Squared errors of all outer examples, fold after fold."""
        return np.concatenate(
            [
                squared_errors(self.x, self.y, inner, outer, logs)
                for inner, outer in self.pairs
            ]
        )
