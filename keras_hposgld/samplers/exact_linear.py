"""Exact draws of the weights of a linear model, given all else.

With features X (n, d), targets y, Gaussian noise of the variance s2 and a prior
of the precision A (diagonal) around a center c, the weights w have the law

    exp(-|y - X w|^2 / (2 s2) - (w - c)' A (w - c) / 2),

a Gaussian one. It is drawn from in the smaller of two forms. With no more
inputs than examples, from P = X'X / s2 + A = L L' and z standard normal,

    w = L'^-1 (L^-1 (X'y / s2 + A c) + z).

With more inputs than examples a draw of the prior and one of the noise are
corrected by what the targets say, in n x n:

    u ~ N(c, A^-1),   v ~ N(0, s2),
    w = u + A^-1 X' (X A^-1 X' + s2)^-1 (y - X u - v).

Columns of the features without a prior, such as that of a bias, are drawn
first in that form, with the other weights integrated out. Several targets share
the features and the noise; each may have a prior of its own. All numbers are
float64.

Reference: Bhattacharya, Chakraborty and Mallick, "Fast sampling with Gaussian
scale mixture priors in high-dimensional regression", Biometrika 2016.
"""

from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.samplers.noise import fold_in
from keras_hposgld.samplers.noise import unit_noise

# Added to the diagonal, in parts of it, where a matrix has no Cholesky root
# because of rounding.
JITTER = 1e-10


class LinearLaw(NamedTuple):
    """The law of the weights of a linear model, in float64.

    Attributes:
        features: Tensor `(n, d)`, of a static shape.
        targets: Tensor `(n, k)`.
        precision: Tensor `(1, d)` or `(k, d)`, A of each target or of all of
            them; above 0, but for the columns that are flat.
        center: Tensor `(d, k)`, c.
        noise_variance: Scalar tensor, s2.
        num_flat: Integer: so many columns, the last ones, have no prior.
    """

    features: tf.Tensor
    targets: tf.Tensor
    precision: tf.Tensor
    center: tf.Tensor
    noise_variance: tf.Tensor
    num_flat: int = 0

    def errors(self, weights: tf.Tensor) -> tf.Tensor:
        """What the predictions of weights `(d, k)` miss, `(n, k)`."""
        return self.targets - self.features @ weights

    def energy(self, weights: tf.Tensor) -> tf.Tensor:
        """Minus the logarithm of the density, up to a constant."""
        deviation = (weights - self.center) ** 2
        prior = tf.reduce_sum(tf.transpose(self.precision) * deviation)
        error = tf.reduce_sum(self.errors(weights) ** 2)
        return (error / self.noise_variance + prior) / 2


def draw(law: LinearLaw, seed: tf.Tensor) -> tf.Tensor:
    """One draw of the weights, `(d, k)`.

    Args:
        law: `LinearLaw`.
        seed: Integer tensor `(2,)`. Equal seeds give equal draws.
    """
    num_examples, num_inputs = law.features.shape
    if num_inputs <= num_examples:
        return _draw_by_inputs(law, seed)
    return _draw_by_examples(law, seed)


def _draw_by_inputs(law: LinearLaw, seed: tf.Tensor) -> tf.Tensor:
    x, s2 = law.features, law.noise_variance
    of_prior = tf.transpose(law.precision) * law.center
    force = tf.matmul(x, law.targets, transpose_a=True) / s2 + of_prior
    root = cholesky(
        tf.matmul(x, x, transpose_a=True) / s2 + tf.linalg.diag(law.precision)
    )
    moved = tf.linalg.triangular_solve(root, _apart(law, force))
    moved += _apart(law, _noise_like(law.center, seed, 0))
    solved = tf.linalg.triangular_solve(root, moved, adjoint=True)
    return _together(law, solved)


def _draw_by_examples(law: LinearLaw, seed: tf.Tensor) -> tf.Tensor:
    num_learned = law.features.shape[1] - law.num_flat
    x, flat = tf.split(law.features, [num_learned, law.num_flat], axis=1)
    precision = law.precision[:, :num_learned]
    variance = 1.0 / precision
    center = law.center[:num_learned]
    spread = x * variance[:, None, :]  # X A^-1, of each prior
    noise = law.noise_variance * tf.eye(x.shape[0], dtype=x.dtype)
    root = cholesky(tf.matmul(spread, x, transpose_b=True) + noise)

    targets = law.targets
    offset = tf.zeros([0, targets.shape[1]], x.dtype)
    if law.num_flat:
        error = _apart(law, targets - x @ center)
        offset = _together(law, _draw_flat(root, flat, error, law, seed))
        targets -= flat @ offset
    deviation = tf.transpose(tf.sqrt(variance))
    u = center + deviation * _noise_like(center, seed, 0)
    v = tf.sqrt(law.noise_variance) * _noise_like(law.targets, seed, 1)
    solved = tf.linalg.cholesky_solve(root, _apart(law, targets - x @ u - v))
    w = u + _together(law, tf.matmul(spread, solved, transpose_a=True))
    return tf.concat([w, offset], 0)


def _draw_flat(
    root: tf.Tensor,
    flat: tf.Tensor,
    error: tf.Tensor,
    law: LinearLaw,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Weights without a prior, given the law of the targets without them."""
    flat = tf.broadcast_to(flat, [root.shape[0], *flat.shape])
    g = tf.linalg.triangular_solve(root, flat)
    r = tf.linalg.triangular_solve(root, error)
    own = cholesky(tf.matmul(g, g, transpose_a=True))
    moved = tf.linalg.triangular_solve(own, tf.matmul(g, r, transpose_a=True))
    shape = law.center[: law.num_flat]
    moved += _apart(law, _noise_like(shape, seed, 2))
    return tf.linalg.triangular_solve(own, moved, adjoint=True)


def cholesky(matrix: tf.Tensor) -> tf.Tensor:
    """The lower Cholesky roots of positive definite matrices.

    Where rounding has left one that is not, a little is added to its diagonal.
    """
    root = tf.linalg.cholesky(matrix)  # no numbers where it fails

    def stirred() -> tf.Tensor:
        diagonal = tf.linalg.diag_part(matrix)
        return tf.linalg.cholesky(
            tf.linalg.set_diag(matrix, (1.0 + JITTER) * diagonal)
        )

    is_done = tf.reduce_all(tf.math.is_finite(root))
    return tf.cond(is_done, lambda: root, stirred)


def _noise_like(tensor: tf.Tensor, seed: tf.Tensor, number: int) -> tf.Tensor:
    return unit_noise(
        tensor.shape, tensor.dtype, "gaussian", fold_in(seed, number)
    )


def _apart(law: LinearLaw, columns: tf.Tensor) -> tf.Tensor:
    """Columns of all targets, as right sides of each prior's matrix."""
    if law.precision.shape[0] == 1:
        return columns[None]
    return tf.transpose(columns)[..., None]


def _together(law: LinearLaw, solved: tf.Tensor) -> tf.Tensor:
    """The way back."""
    if law.precision.shape[0] == 1:
        return solved[0]
    return tf.transpose(solved[..., 0])
