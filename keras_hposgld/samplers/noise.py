"""Noise that is a function of its seed, the same on every device.

TensorFlow's own normal sampler gives other numbers under XLA than without.
Only raw random integers are the same everywhere, so all noise is made from
those: by the Box-Muller transform, or from single bits.

A seed is an integer tensor of shape `(2,)`: 64 bits. `fold_in` derives one
from another and a number, without losing any of them, so that different steps
and different weights have different noise.
"""

import math
from typing import Any

import tensorflow as tf

from keras_hposgld.core.one_pass import in_one_pass

NOISES = ("gaussian", "rademacher")


def seed_from(number: int) -> tf.Tensor:
    """The seed with the 64 bits of an integer, `0 <= number < 2**64`."""
    words = [number & 0xFFFFFFFF, number >> 32]
    signed = [word - 2**32 if word >= 2**31 else word for word in words]
    return tf.constant(signed, tf.int32)


def fold_in(seed: tf.Tensor, number: Any) -> tf.Tensor:
    """Derives a seed from a seed and an integer of up to 64 bits."""
    return _random_words([2], seed, number)


def unit_noise(
    shape: Any, dtype: Any, noise: str, seed: tf.Tensor
) -> tf.Tensor:
    """Draws noise of zero mean and unit variance.

    Args:
        shape: Static shape, or integer tensor.
        dtype: Floating-point dtype of the result. Half precision is drawn in
            float32, whose range the transform needs, and then rounded.
        noise: `"gaussian"` or `"rademacher"` (plus or minus one).
        seed: Integer tensor of shape `(2,)`.
    """
    size = _size(shape)
    if noise == "rademacher":
        return _signs(_words_of_bits(size, seed), shape, size, dtype)
    drawn_in = tf.as_dtype(dtype)
    if drawn_in.size < 4:
        drawn_in = tf.float32
    words = _random_words([2, -(-size // 2)], seed)
    # The upper 24 bits, centered in their cells: in (0, 1) also in float32.
    upper = tf.cast(tf.bitwise.right_shift(words[0], 8), drawn_in)
    uniform = (upper + 0.5) * 2.0**-24 + 0.5
    radius = tf.sqrt(-2.0 * tf.math.log(uniform))
    angle = tf.cast(words[1], drawn_in) * (2.0 * math.pi * 2.0**-32)
    draws = tf.stack([radius * tf.cos(angle), radius * tf.sin(angle)])
    draws = tf.reshape(tf.reshape(draws, [-1])[:size], shape)
    return tf.cast(draws, dtype)


def plus_noise(
    tensor: tf.Tensor,
    scale: tf.Tensor,
    noise: str,
    seeds: list,
    variances: tf.Tensor | None = None,
) -> tf.Tensor:
    """`tensor + scale * z`, with z the mean of the noise of the seeds.

    Args:
        tensor: Tensor.
        scale: Scalar tensor.
        noise: `"gaussian"` or `"rademacher"`.
        seeds: List of integer tensors of shape `(2,)`.
        variances: Tensor shaped like `tensor`, of the noise. Defaults to one.
    """
    shape = _shape_of(tensor)
    if noise == "rademacher":
        words = [_words_of_bits(_size(shape), seed) for seed in seeds]
        return _plus_signs(tensor, scale, words, variances)
    draws = [unit_noise(shape, tensor.dtype, noise, seed) for seed in seeds]
    return tensor + scale * _spread(_mean(draws), variances)


# Of logarithm and cosine TensorFlow's own are faster than XLA's, so that
# Gaussian noise is left to it.
@in_one_pass
def _plus_signs(
    tensor: tf.Tensor,
    scale: tf.Tensor,
    words: list,
    variances: tf.Tensor | None,
) -> tf.Tensor:
    shape = _shape_of(tensor)
    size = _size(shape)
    signs = [_signs(one, shape, size, tensor.dtype) for one in words]
    return tensor + scale * _spread(_mean(signs), variances)


def _shape_of(tensor: tf.Tensor) -> Any:
    static = tensor.shape.is_fully_defined()
    return tensor.shape if static else tf.shape(tensor)


def _size(shape: Any) -> Any:
    return tf.reduce_prod(shape) if tf.is_tensor(shape) else math.prod(shape)


def _spread(draws: tf.Tensor, variances: tf.Tensor | None) -> tf.Tensor:
    return draws if variances is None else tf.sqrt(variances) * draws


def _mean(draws: list) -> tf.Tensor:
    if len(draws) == 1:
        return draws[0]
    return sum(draws[1:], start=draws[0]) * (1.0 / len(draws))


def _signs(words: tf.Tensor, shape: Any, size: Any, dtype: Any) -> tf.Tensor:
    """Plus or minus one for each bit of the words, up to the size."""
    bits = tf.bitwise.right_shift(words, tf.range(32)) & 1
    signs = tf.cast(1 - 2 * bits, dtype)
    return tf.reshape(tf.reshape(signs, [-1])[:size], shape)


def _words_of_bits(number: Any, seed: tf.Tensor) -> tf.Tensor:
    return _random_words([-(-number // 32), 1], seed)


def _random_words(
    shape: list, seed: tf.Tensor, number: Any = None
) -> tf.Tensor:
    # `tf.random.stateless_uniform` scrambles its seed first, by a dozen small
    # operations for each weight; here `fold_in` has done that. One named
    # algorithm, since the automatic choice depends on the device.
    key = tf.bitcast(tf.cast(seed, tf.int32), tf.uint64)
    counter = tf.zeros([2], tf.int64)
    if number is not None:
        # The second word keeps derived seeds apart from noise of this seed.
        counter = tf.stack([tf.cast(number, tf.int64), tf.ones([], tf.int64)])
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape,
        key=tf.reshape(key, [1]),
        counter=tf.bitcast(counter, tf.uint64),
        alg=tf.random.Algorithm.PHILOX.value,
        dtype=tf.int32,
    )
