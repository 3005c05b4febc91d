"""Problems whose answers are known, computed in NumPy from the equations."""

import numpy as np
import tensorflow as tf

import keras_hposgld as hs


class Ridge:
    """Least squares with one L2 strength per feature.

    The outer objective is a fourth power beside the squared error, so that its
    Hessian is not constant, and depends on the strengths directly too.
    """

    def __init__(self, rng, num_features=4, num_inner=30, num_outer=20):
        self.x = rng.normal(size=(num_inner, num_features))
        self.y = rng.normal(size=num_inner)
        self.x_outer = rng.normal(size=(num_outer, num_features))
        self.y_outer = rng.normal(size=num_outer)
        self.strengths = rng.uniform(0.1, 1.0, num_features)
        self.start = rng.normal(size=num_features)
        self.problem = hs.BilevelProblem(
            self.inner, self.outer, log_normalizer=self.log_normalizer
        )

    # The objectives, for TensorFlow.

    def inner(self, strengths, weights, batch):
        x, y = (self.x, self.y) if batch is None else batch
        error = tf.linalg.matvec(x, weights) - y
        penalty = tf.reduce_sum(strengths * weights**2)
        return tf.reduce_mean(error**2) + penalty

    def outer(self, strengths, weights, batch):
        x, y = (self.x_outer, self.y_outer) if batch is None else batch
        error = tf.linalg.matvec(x, weights) - y
        return tf.reduce_mean(error**2 + 0.1 * error**4) + 0.3 * tf.reduce_sum(
            strengths**2
        )

    def log_normalizer(self, strengths, temperature):
        return -0.5 * tf.reduce_sum(tf.math.log(strengths))

    # The same, and their derivatives, in NumPy.

    def inner_gradient(self, strengths, weights, batch=None):
        x, y = (self.x, self.y) if batch is None else batch
        return 2 / len(y) * x.T @ (x @ weights - y) + 2 * strengths * weights

    def inner_hessian(self, strengths, batch=None):
        x, y = (self.x, self.y) if batch is None else batch
        return 2 / len(y) * x.T @ x + 2 * np.diag(strengths)

    def inner_mixed(self, weights):
        return 2 * np.diag(weights)

    def outer_value(self, strengths, weights):
        error = self.x_outer @ weights - self.y_outer
        return np.mean(error**2 + 0.1 * error**4) + 0.3 * np.sum(strengths**2)

    def outer_gradient(self, weights, batch=None):
        x, y = (self.x_outer, self.y_outer) if batch is None else batch
        error = x @ weights - y
        return x.T @ (2 * error + 0.4 * error**3) / len(y)

    def outer_hessian(self, weights, batch=None):
        x, y = (self.x_outer, self.y_outer) if batch is None else batch
        error = x @ weights - y
        return (x.T * (2 + 1.2 * error**2)) @ x / len(y)

    def solution(self, strengths):
        return np.linalg.solve(
            self.inner_hessian(strengths), 2 / len(self.y) * self.x.T @ self.y
        )

    def exact_hypergradient(self, strengths):
        """Derivative of the outer objective at the inner solution."""
        weights = self.solution(strengths)
        adjoint = np.linalg.solve(
            self.inner_hessian(strengths), self.outer_gradient(weights)
        )
        return 0.6 * strengths - adjoint @ self.inner_mixed(weights)

    def paper_recursion(
        self,
        strengths,
        weights,
        *,
        learning_rates,
        burn_in,
        start_jacobian=None,
        curvature="paper",
        inner_batches=None,
        outer_batches=None,
    ):
        """Equations 22, 24 and 25 with full matrices, at temperature 0.

        Returns:
            The hypergradient h, the last weights, and all g_m.
        """
        num_steps = len(learning_rates)
        num_samples = num_steps - burn_in

        def batch(batches, index):
            return None if batches is None else [b[index] for b in batches]

        d0 = start_jacobian
        if d0 is None:
            d0 = np.zeros((len(weights), len(strengths)))
        v_old = self.outer_gradient(weights, batch(outer_batches, 0))
        g, h, all_g = v_old @ d0, np.zeros(len(strengths)), []
        for index, alpha in enumerate(learning_rates):
            inner = batch(inner_batches, index)
            outer = batch(outer_batches, index)
            old = weights
            gradient = self.inner_gradient(strengths, old, inner)
            weights = old - alpha * gradient
            v = self.outer_gradient(weights, outer)
            if curvature == "paper":
                change = (weights - old) @ self.outer_hessian(old, outer)
            else:
                change = v - v_old
            g = (
                g
                + change @ d0
                - alpha
                * v
                @ (
                    self.inner_mixed(old)
                    + self.inner_hessian(strengths, inner) @ d0
                )
            )
            v_old = v
            all_g.append(g)
            if index >= burn_in:
                h = h + (0.6 * strengths + g) / num_samples
        return h, weights, np.array(all_g)


def autoregression_moments(decay, variance_added, start, num_steps):
    """Exact laws of `w <- decay * w + noise` with independent noise.

    Returns:
        Means and variances of w after 0, 1, ..., `num_steps` steps.
    """
    means, variances = [start], [0.0]
    for _ in range(num_steps):
        means.append(decay * means[-1])
        variances.append(decay**2 * variances[-1] + variance_added)
    return np.array(means), np.array(variances)


class LinearGaussian:
    """Linear regression with a strength a weight and a noise, all learned.

    The inner objective is minus a log-likelihood over the number n of examples,
    and a penalty of `sum(s w^2)`. At the temperature 1/n a weight has the prior
    precision `2 n s`. The hyperparameters are the logarithms of the strengths
    and of the standard deviation of the noise.
    """

    def __init__(self, rng, num_features=4, num_examples=50, noise=0.6):
        self.x = rng.normal(size=(num_examples, num_features))
        signs = np.sign(rng.normal(size=num_features))
        weights = signs * np.linspace(0.5, 1.5, num_features)
        self.y = self.x @ weights + noise * rng.normal(size=num_examples)
        self.num_examples = num_examples
        self.log_strengths = np.log(rng.uniform(0.01, 0.1, num_features))
        self.log_noise = np.log(0.9)
        self.problem = hs.BilevelProblem(
            self.inner, log_normalizer=self.log_normalizer
        )

    # For TensorFlow: chains side by side, with hyperparameters of their own.

    def inner(self, hypers, weights, batch):
        error = tf.linalg.matmul(weights, self.x, transpose_b=True) - self.y
        log_noise = hypers["log_noise"]
        fit = 0.5 * tf.reduce_mean(error**2, -1) * tf.exp(-2 * log_noise)
        penalty = tf.exp(hypers["log_strengths"]) * weights**2
        return tf.reduce_sum(fit + log_noise) + tf.reduce_sum(penalty)

    def log_normalizer(self, hypers, temperature):
        return -0.5 * tf.reduce_sum(hypers["log_strengths"])

    # In NumPy.

    def posterior(self, log_strengths, log_noise):
        precision = np.diag(2 * self.num_examples * np.exp(log_strengths))
        precision = precision + self.x.T @ self.x * np.exp(-2 * log_noise)
        covariance = np.linalg.inv(precision)
        mean = covariance @ self.x.T @ self.y * np.exp(-2 * log_noise)
        return mean, covariance

    def free_energy(self, log_strengths, log_noise):
        n = self.num_examples
        prior = np.diag(np.exp(-np.asarray(log_strengths)) / (2 * n))
        covariance = np.exp(2 * log_noise) * np.eye(n)
        covariance = covariance + self.x @ prior @ self.x.T
        _, log_det = np.linalg.slogdet(covariance)
        quadratic = self.y @ np.linalg.solve(covariance, self.y)
        return 0.5 * (log_det + quadratic) / n

    def slope(self, log_strengths, log_noise):
        """The derivative of the free energy by the logarithms."""
        mean, covariance = self.posterior(log_strengths, log_noise)
        n = self.num_examples
        squares = mean**2 + np.diag(covariance)
        error = np.sum((self.y - self.x @ mean) ** 2)
        error = error + np.trace(self.x @ covariance @ self.x.T)
        return np.append(
            np.exp(log_strengths) * squares - 0.5 / n,
            1.0 - error / n * np.exp(-2 * log_noise),
        )

    def optimum(self, rounds=2000):
        """Where the slope is zero, by MacKay's fixed point."""
        log_strengths, log_noise = self.log_strengths, self.log_noise
        n = self.num_examples
        for _ in range(rounds):
            mean, covariance = self.posterior(log_strengths, log_noise)
            strengths = np.exp(log_strengths)
            known = 1.0 - 2 * n * strengths * np.diag(covariance)
            log_strengths = np.log(known / (2 * n * mean**2))
            error = np.sum((self.y - self.x @ mean) ** 2)
            log_noise = 0.5 * np.log(error / (n - known.sum()))
        slope = self.slope(log_strengths, log_noise)
        assert np.abs(slope).max() < 1e-10
        return log_strengths, log_noise
