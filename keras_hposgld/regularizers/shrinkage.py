"""The prior of the strengths of one weight: they differ by so much.

The strengths of a weight are written as log s_j = m + d_j, where m is their
mean. With one strength for all, every d_j is 0, and the outer data have to
learn one number. With many they can be fitted to the accidents of the outer
data, as weights are to those of the training data. So each d_j has a Laplace
prior of scale 1/k: minus its logarithm is k |d_j|. It leaves m alone.
"""

from typing import Any

import tensorflow as tf

# The default, chosen on data: experiments/defaults.py.
SHRINKAGE = 0.5

# By what a strength and a weight's distance from the center say how strongly
# it is pulled there: the derivative of the pull, over the strength.
_CURVATURE_OVER_STRENGTH = {
    "l2": lambda distance: tf.constant(2.0, distance.dtype),
    "decay": lambda distance: tf.constant(1.0, distance.dtype),
    # The pull of l1 has one size; a weight is at rest when it has crossed.
    "l1": lambda distance: (
        1.0 / tf.maximum(tf.reduce_mean(tf.abs(distance)), 1e-6)
    ),
}


def prior_gradient(
    penalty: Any, power: str, shrinkage: float, share_seen: Any
) -> tf.Tensor:
    """The derivative of `shrinkage * sum |d_j|` by the unconstrained numbers.

    Args:
        penalty: `WeightPenalty`.
        power: String, which of its strengths.
        shrinkage: Float, k.
        share_seen: As in `Hyperparameter.prior_gradient`.
    """
    owner = penalty.owner
    variable = tf.convert_to_tensor(penalty.strengths[power])
    with tf.GradientTape() as tape:
        tape.watch(variable)
        strengths = owner.constrain(variable)
        log_strengths = tf.math.log(strengths)
    deviations = log_strengths - tf.reduce_mean(log_strengths)
    distance = tf.cast(penalty.weight, variable.dtype)
    if penalty.center is not None:
        distance -= tf.convert_to_tensor(penalty.center)
    curvature = strengths * _CURVATURE_OVER_STRENGTH[power](distance)
    share = share_seen(
        penalty.weight,
        tf.reshape(curvature, owner.aligned(penalty.shape)),
        power == "decay",
    )
    pull = tf.sign(deviations) * tf.reshape(share, variable.shape)
    pull -= tf.reduce_mean(pull)  # none on m
    return shrinkage * tape.gradient(log_strengths, variable, pull)
