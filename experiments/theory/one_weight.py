"""Two problems of one weight whose chains are known in closed form.

    mean    L = theta^2 / 2 + lambda theta,   f = theta
    width   L = lambda theta^2 / 2,           f = theta^2 / 2,   lambda = 1

Both have inner curvature 1. `alpha` is the step size, `m` the number of steps,
and the time is `alpha * m`. The objectives are sums over independent chains.
"""

import numpy as np
import tensorflow as tf


class Mean:
    """lambda moves the mean of the law; every chain gives one number."""

    temperature, strength, start, num_chains = 0.0, 0.3, 0.5, 1

    def inner(self, strength, weights, batch):
        return tf.reduce_sum(weights**2 / 2 + strength * weights)

    def outer(self, strength, weights, batch):
        return tf.reduce_sum(weights)

    def exact(self, alpha, m):
        """Derivative of E[f(theta^m)] with respect to lambda."""
        return -(1 - (1 - alpha) ** m)

    def expected(self, alpha, m):
        """E[g_m] of the recursion: -1 is exact for a chain in its law."""
        return -alpha * m

    def limit(self, time):
        """What g_m / exact tends to at a fixed time."""
        return time / -np.expm1(-time)


class Width:
    """lambda moves the width of the law; an average over noisy chains."""

    temperature, strength, start = 0.5, 1.0, 0.0

    def __init__(self, num_chains):
        self.num_chains = num_chains

    def inner(self, strength, weights, batch):
        return tf.reduce_sum(strength * weights**2 / 2)

    def outer(self, strength, weights, batch):
        return tf.reduce_sum(weights**2 / 2)

    def exact(self, alpha, m):
        # E[theta^2] after m steps is 2 alpha tau sum_j (1 - alpha lambda)^2j.
        j, decay = np.arange(m), 1 - alpha
        return (
            -2 * alpha**2 * self.temperature * np.sum(j * decay ** (2 * j - 1))
        )

    def expected(self, alpha, m):
        # theta^i = decay theta^{i-1} + noise, so E[v_i C] = decay E[theta^2].
        decay = 1 - alpha
        squares = 2 * alpha * self.temperature / (1 - decay**2)
        squares *= 1 - decay ** (2 * np.arange(m))
        return -alpha * decay * np.sum(squares)

    def limit(self, time):
        x, decay = 2 * time, np.exp(-2 * time)
        return (x - 1 + decay) / (1 - decay - x * decay)
