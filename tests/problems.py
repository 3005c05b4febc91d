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
