"""Outer problems whose exact gradient is known at every temperature.

Rows are independent runs. Hyperparameters have shape `(runs, size)`, weights
`(runs, width)`, and the objectives are sums over the rows. So one chain of the
package moves all runs side by side, and row `i` of its hypergradient belongs to
run `i`. NumPy computes the exact values, in the law of a given temperature;
`temperature=0` is the inner minimum.
"""

import numpy as np
import scipy.optimize
import tensorflow as tf


class Synthetic:
    """The paper's synthetic problem (section 4.1), by quadrature.

        outer  (lambda - theta)^2 + (theta - 1/2)^2
        inner  theta^3 / 3 - (1 - lambda^2) theta

    The law is that of the well at theta > 0. `bounds` keep lambda where the
    well is deep, since the inner objective has no lower bound beyond it.

    Args:
        noise: Float `>= 0`, half-width of the uniform perturbations of the
            inner objective's two coefficients (equation 28): 0 is table 2,
            0.3 is table 3. The exact values are those of the mean objective.
    """

    bounds = (0.3, 0.9)
    unit = "|λ − λ*|"

    def __init__(self, noise=0.0):
        self.noise = noise

    def start(self, runs):
        return np.full((runs, 1), 0.5), np.full((runs, 1), 0.5)

    def batches(self, num_steps, runs, seed):
        """Perturbations of shape `(num_steps, 2, runs, 1)`, or `None`."""
        if not self.noise:
            return None
        shape = [num_steps, 2, runs, 1]
        return tf.random.stateless_uniform(
            shape, seed, -self.noise, self.noise, dtype=tf.float64
        )

    def inner(self, strength, weight, batch):
        cubic, linear = (0.0, 0.0) if batch is None else tf.unstack(batch)
        loss = (1 / 3 + cubic) * weight**3
        return tf.reduce_sum(loss - (1 - strength**2 + linear) * weight)

    def outer(self, strength, weight, batch):
        return tf.reduce_sum((strength - weight) ** 2 + (weight - 0.5) ** 2)

    def _law(self, strength, temperature):
        """Outer objective and probabilities on a grid of the weight."""
        root = np.sqrt(1 - strength**2)
        spread = np.sqrt(temperature / (2 * root))  # 1 / sqrt(curvature / tau)
        weight = root + spread * np.linspace(-12, 12, 1001)
        energy = weight**3 / 3 - root**2 * weight + 2 / 3 * root**3
        density = np.exp(-energy / temperature) * (weight > -root)
        outer = (strength - weight) ** 2 + (weight - 0.5) ** 2
        return weight, outer, density / density.sum(axis=1, keepdims=True)

    def value(self, strength, temperature):
        """Expected outer objective, one number a run."""
        if temperature == 0.0:
            root = np.sqrt(1 - strength[:, 0] ** 2)
            return (strength[:, 0] - root) ** 2 + (root - 0.5) ** 2
        _, outer, law = self._law(strength, temperature)
        return np.sum(law * outer, axis=1)

    def gradient(self, strength, temperature):
        """Its derivative, shaped like `strength`."""
        if temperature == 0.0:
            root = np.sqrt(1 - strength**2)
            v = 2 * (root - strength) + 2 * (root - 0.5)
            return 2 * (strength - root) - v * strength / root
        # dE[f] = E[df] - Cov(f, dL) / tau, where dL = 2 lambda theta.
        weight, outer, law = self._law(strength, temperature)
        outer = outer - np.sum(law * outer, axis=1, keepdims=True)
        sample = 2 * (strength - weight) - outer * 2 * strength * weight / (
            temperature
        )
        return np.sum(law * sample, axis=1, keepdims=True)

    def distance(self, strength, solution):
        """How far from the bilevel solution, in `unit`, one number a run."""
        return np.abs(strength - solution)[:, 0]


class Ridge:
    """Regression with one L2 strength for each input, in closed form.

    Hyperparameters are the logarithms of the strengths. Every second input is
    irrelevant: its best strength is as large as `bounds` allow.
    """

    bounds = (-6.0, 2.0)
    unit = "F − min F"
    size = 8

    def __init__(self, num_inner=40, num_outer=400, correlation=0.3):
        rng = np.random.default_rng(0)
        distance = np.subtract.outer(np.arange(self.size), np.arange(self.size))
        mixing = np.linalg.cholesky(correlation ** np.abs(distance))
        truth = (np.arange(self.size) % 2 == 0).astype(float)

        def moments(number):
            x = rng.normal(size=(number, self.size)) @ mixing.T
            y = x @ truth + rng.normal(size=number)
            return x.T @ x / number, x.T @ y / number, y @ y / number

        self.train, self.valid = moments(num_inner), moments(num_outer)

    def start(self, runs):
        shape = (runs, self.size)
        return np.full(shape, np.log(0.1)), np.zeros(shape)

    def batches(self, num_steps, runs, seed):
        return None

    @staticmethod
    def _half_squared_error(weights, moments):
        second, cross, square = moments
        squares = tf.reduce_sum((weights @ second / 2 - cross) * weights)
        return squares + square / 2 * weights.shape[0]

    def inner(self, logs, weights, batch):
        penalty = tf.reduce_sum(tf.exp(logs) * weights**2) / 2
        return self._half_squared_error(weights, self.train) + penalty

    def outer(self, logs, weights, batch):
        return self._half_squared_error(weights, self.valid)

    def _law(self, logs):
        """Means, and covariances divided by the temperature."""
        second, cross, _ = self.train
        strengths = np.exp(logs)[:, :, None] * np.eye(self.size)
        inverse = np.linalg.inv(second + strengths)
        return inverse @ cross, inverse

    def value(self, logs, temperature):
        second, cross, square = self.valid
        mean, inverse = self._law(logs)
        fit = np.sum((mean @ second / 2 - cross) * mean, axis=1) + square / 2
        return fit + temperature / 2 * np.trace(
            second @ inverse, axis1=1, axis2=2
        )

    def gradient(self, logs, temperature):
        second, cross, _ = self.valid
        mean, inverse = self._law(logs)
        through_mean = mean * np.einsum(
            "rij,rj->ri", inverse, mean @ second - cross
        )
        through_width = np.einsum("rij,jk,rki->ri", inverse, second, inverse)
        return -np.exp(logs) * (through_mean + temperature / 2 * through_width)

    def distance(self, logs, solution):
        return self.value(logs, 0.0) - self.value(solution, 0.0)


def solve(problem):
    """The bilevel solution, at temperature 0, of shape `(1, size)`."""
    start, _ = problem.start(1)
    return scipy.optimize.minimize(
        lambda point: problem.value(point[None], 0.0)[0],
        start[0],
        jac=lambda point: problem.gradient(point[None], 0.0)[0],
        bounds=[problem.bounds] * start.size,
        tol=1e-12,
    ).x[None]
