"""A penalty whose derivatives take one pass over the weights each.

For unconstrained numbers u, strengths s = max_value sigmoid(u), and deviations
d of a weight from its center, a penalty is the sum of s d^2 or of s |d|.
Differentiated automatically, it keeps half a dozen arrays of the size of the
weights from the inner gradient to the product with the mixed derivative, and
each is written and read again. Here the derivatives are given by hand, from d
and u alone, and for a large weight each is compiled into one loop by XLA.
"""

import functools

import tensorflow as tf

from keras_hposgld.core.one_pass import is_large


def bounded_penalty(
    deviation: tf.Tensor,
    unconstrained: tf.Tensor,
    power: str,
    max_value: float,
) -> tf.Tensor:
    """The sum of `strength * deviation**2`, or of `strength * |deviation|`.

    It can be differentiated any number of times.

    Args:
        deviation: Tensor.
        unconstrained: Tensor that broadcasts against `deviation` and has its
            rank: what the strengths are made from.
        power: `"l1"` or `"l2"`.
        max_value: Float, the bound of the strengths.
    """
    parts = _parts(power, max_value, is_large(deviation.shape))

    # The derivatives refer to the tensors of here, not to the arguments of the
    # functions: those are copies, of which a tape outside knows nothing.
    @tf.custom_gradient
    def slope(deviation_, unconstrained_):
        def backward(upstream):
            return (
                parts.curvature(upstream, unconstrained),
                parts.mixed(upstream, deviation, unconstrained),
            )

        return parts.slope(deviation, unconstrained), backward

    @tf.custom_gradient
    def total(deviation_, unconstrained_):
        def backward(upstream):
            return (
                upstream * slope(deviation, unconstrained),
                upstream * parts.by_strength(deviation, unconstrained),
            )

        return tf.reduce_sum(parts.terms(deviation, unconstrained)), backward

    return total(deviation, unconstrained)


class _Parts:
    """The penalty and its derivatives, each a function of its own."""

    def __init__(self, power, max_value, compiled):
        is_l1 = power == "l1"

        def size(d):
            return tf.abs(d) if is_l1 else d * d

        def slope(d):
            return tf.sign(d) if is_l1 else 2.0 * d

        def strengths(u):
            return max_value * tf.sigmoid(u)

        def by_strength(upstream, u):
            """`upstream . d strengths / du`."""
            # sigmoid(u) sigmoid(-u), with one exponential. In float32,
            # 1 - sigmoid(u) is 0 from u = 17 on, and a strength that is so
            # near to its bound could not come back.
            tail = tf.exp(-tf.abs(u))
            upstream = _summed_like(upstream, u.shape)
            return upstream * (max_value * tail / (1.0 + tail) ** 2)

        def part(function):
            if not compiled:
                return function
            return tf.function(function, jit_compile=True, autograph=False)

        # Summed by TensorFlow: XLA's sum over all entries takes longer.
        self.terms = part(lambda d, u: strengths(u) * size(d))
        self.slope = part(lambda d, u: strengths(u) * slope(d))
        self.by_strength = part(lambda d, u: by_strength(size(d), u))
        self.mixed = part(lambda v, d, u: by_strength(v * slope(d), u))
        self.curvature = part(
            lambda v, u: tf.zeros_like(v) if is_l1 else 2.0 * strengths(u) * v
        )


# Regularizers of one bound share what is compiled.
_parts = functools.lru_cache(maxsize=64)(_Parts)


def _summed_like(upstream, shape):
    """Sums over the axes along which strengths were broadcast."""
    axes = [
        axis
        for axis, (wide, narrow) in enumerate(
            zip(upstream.shape, shape, strict=True)
        )
        if wide != narrow
    ]
    return tf.reduce_sum(upstream, axes, keepdims=True) if axes else upstream
