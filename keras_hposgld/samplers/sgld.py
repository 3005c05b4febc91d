"""Langevin sampling of the inner weights.

Whatever draws inner weights uses the step below, so its conventions are stated
once, here:

* the target density is proportional to `exp(-energy(w) / temperature)`, where
  the energy is the inner objective (a mean over the batch plus the
  regularization);
* one step reads
  `w <- w - learning_rate * grad + sqrt(2 * learning_rate * temperature)
  * noise_scale * noise`, with `noise` of zero mean and unit variance;
* `temperature=0` is plain (stochastic) gradient descent, bit for bit, and
  draws no random number;
* the noise of a step is a function of the sampler's seed, the number of steps
  taken before and the position of the weight in its list. Nothing else enters:
  equal seeds give equal chains, on any device and under any compiler.

The paper's `epsilon` (equations 10 and 24) is `2 * learning_rate *
temperature`, and its `kappa` is `noise_scale`.
"""

import functools
import math
import numbers
import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.vectors import is_large

NOISES = ("gaussian", "rademacher")


def langevin_step(
    param,
    gradient,
    *,
    learning_rate,
    temperature=0.0,
    noise_scale=1.0,
    noise="gaussian",
    seed=None,
):
    """Moves one tensor of inner weights by one Langevin step.

    Args:
        param: Tensor, the current weights `w`.
        gradient: Tensor shaped like `param`, the gradient of the energy (a
            minibatch estimate is enough).
        learning_rate: Scalar, `> 0`, in the unit of `param**2 / energy`.
        temperature: Float, `>= 0`, in the unit of the energy.
        noise_scale: Float, `>= 0`, multiplies the noise.
        noise: `"gaussian"` or `"rademacher"` (plus or minus one).
        seed: Integer tensor of shape `(2,)`. Not used at `temperature=0`.

    Returns:
        Tensor shaped like `param`: the next weights.

    Reference:
        Welling and Teh, "Bayesian Learning via Stochastic Gradient Langevin
        Dynamics", ICML 2011.
    """
    learning_rate = tf.cast(learning_rate, param.dtype)
    moved = param - learning_rate * gradient
    if temperature == 0.0 or noise_scale == 0.0:
        return moved
    scale = noise_scale * tf.sqrt(
        learning_rate * tf.constant(2.0 * temperature, param.dtype)
    )
    if noise == "rademacher" and is_large(param.shape):
        words = _words_of_bits(param.shape.num_elements(), seed)
        return _compiled_plus_signs(moved, scale, words)
    static = param.shape.is_fully_defined()
    shape = param.shape if static else tf.shape(param)
    return moved + scale * unit_noise(shape, param.dtype, noise, seed)


def unit_noise(shape, dtype, noise, seed):
    """Draws noise of zero mean and unit variance.

    TensorFlow's own normal sampler gives other numbers under XLA than without.
    Only raw random integers are the same everywhere, so the noise is made from
    those: by the Box-Muller transform, or from single bits.

    Args:
        shape: Static shape, or integer tensor.
        dtype: Floating-point dtype of the result.
        noise: `"gaussian"` or `"rademacher"`.
        seed: Integer tensor of shape `(2,)`.
    """
    size = tf.reduce_prod(shape) if tf.is_tensor(shape) else math.prod(shape)
    if noise == "rademacher":
        return _signs(_words_of_bits(size, seed), shape, size, dtype)
    words = _random_words([2, -(-size // 2)], seed)
    # The upper 24 bits, centred in their cells: in (0, 1) also in float32.
    upper = tf.cast(tf.bitwise.right_shift(words[0], 8), dtype)
    uniform = (upper + 0.5) * 2.0**-24 + 0.5
    radius = tf.sqrt(-2.0 * tf.math.log(uniform))
    angle = tf.cast(words[1], dtype) * (2.0 * math.pi * 2.0**-32)
    draws = tf.stack([radius * tf.cos(angle), radius * tf.sin(angle)])
    return tf.reshape(tf.reshape(draws, [-1])[:size], shape)


def _signs(words, shape, size, dtype):
    """Plus or minus one for each bit of the words, as many as are needed."""
    bits = tf.bitwise.right_shift(words, tf.range(32)) & 1
    signs = tf.cast(1 - 2 * bits, dtype)
    return tf.reshape(tf.reshape(signs, [-1])[:size], shape)


# One pass over the memory and not seven. Of logarithm and cosine TensorFlow's
# own are the faster ones, so that Gaussian noise is left to it.
@functools.partial(tf.function, autograph=False, jit_compile=True)
def _compiled_plus_signs(param, scale, words):
    size = param.shape.num_elements()
    return param + scale * _signs(words, param.shape, size, param.dtype)


def _words_of_bits(number, seed):
    return _random_words([-(-number // 32), 1], seed)


def fold_in(seed, number):
    """Derives a seed of shape `(2,)` from a seed and an integer."""
    mixed = _random_words([], seed)
    return tf.stack([mixed, tf.cast(number, tf.int32)])


def _random_words(shape, seed):
    # `tf.random.stateless_uniform` scrambles its seed first, by a dozen small
    # operations for each weight; here `fold_in` has done that. One named
    # algorithm, since the automatic choice depends on the device.
    key = tf.bitcast(tf.cast(seed, tf.int32), tf.uint64)
    return tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=shape,
        key=tf.reshape(key, [1]),
        counter=tf.zeros([2], tf.uint64),
        alg=tf.random.Algorithm.PHILOX.value,
        dtype=tf.int32,
    )


def clip_as(optimizer: keras.optimizers.Optimizer, gradients: list) -> list:
    """Clips gradients as an optimizer's `apply` does."""
    # Private to Keras, and used so that what is clipped apart from `apply` is
    # clipped in no other way.
    return optimizer._clip_gradients(gradients)


@keras.saving.register_keras_serializable(package="keras_hposgld")
class SGLD(keras.optimizers.Optimizer):
    """Stochastic gradient Langevin dynamics as a Keras optimizer.

    It drives the inner chain of every estimator, and it trains (more exactly:
    samples) an ordinary Keras model when passed to `model.compile`. Both take
    the same step (see the module's text for the conventions).

    Args:
        learning_rate: Float `> 0` or a
            `keras.optimizers.schedules.LearningRateSchedule` over inner steps.
            Defaults to `0.01`.
        temperature: Float `>= 0`, in the unit of the loss. Defaults to `0.0`,
            which is plain gradient descent. With a loss that is a mean over
            `n` examples, the Bayesian posterior has temperature `1 / n`.
        noise_scale: Float `>= 0`, the paper's kappa. Defaults to `1.0`.
        noise: `"gaussian"` (default) or `"rademacher"`: plus or minus one, a
            weak Euler scheme, which agrees with the Gaussian one in mean and
            variance and is cheaper.
        seed: Integer. `None`, the default, draws one from Python's generator,
            which `keras.utils.set_random_seed` fixes.
        clipnorm: Float, clips each gradient to this norm.
        clipvalue: Float, clips each entry of the gradients.
        global_clipnorm: Float, clips the norm of all gradients together.
        name: String.

    Raises:
        ValueError: If a number is negative, zero where it must be positive, or
            not finite; if `noise` is unknown.

    Reference:
        Welling and Teh, ICML 2011; equations 10 and 24 of Kim and Hospedales,
        AAAI 2025.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(hs.SGLD(0.1, temperature=1e-4), loss="mse")
    model.fit(np.ones((8, 3)), np.ones((8, 1)), epochs=2, verbose=0)
    ```
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        temperature: float = 0.0,
        noise_scale: float = 1.0,
        noise: str = "gaussian",
        seed: int | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str = "sgld",
    ):
        if isinstance(learning_rate, numbers.Real):
            learning_rate = float(learning_rate)
            if not (math.isfinite(learning_rate) and learning_rate > 0):
                raise ValueError(
                    "`learning_rate` must be a finite number above 0. "
                    f"Received: learning_rate={learning_rate}."
                )
        for argument, value in (
            ("temperature", temperature),
            ("noise_scale", noise_scale),
        ):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"`{argument}` must be a finite number, 0 or above. "
                    f"Received: {argument}={value}. Use `temperature=0.0` for "
                    "plain gradient descent."
                )
        if noise not in NOISES:
            raise ValueError(
                f"`noise` must be one of {NOISES}. Received: noise={noise!r}."
            )
        super().__init__(
            learning_rate=learning_rate,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            name=name,
        )
        self.temperature = float(temperature)
        self.noise_scale = float(noise_scale)
        self.noise = noise
        self.seed = random.randint(1, 2**31 - 1) if seed is None else int(seed)
        # Keras keeps the learning rate in float32, where 0.05 is 0.0500000007.
        # A float64 chain takes the number that was given for as long as Keras
        # holds its float32 image.
        self._given_learning_rate = (
            learning_rate if isinstance(learning_rate, float) else None
        )

    def learning_rate_at(self, step: Any, dtype: Any = "float32") -> tf.Tensor:
        """The learning rate of an inner step, as a scalar tensor.

        Args:
            step: Integer or integer tensor: the number of steps before it.
            dtype: Dtype of the result.
        """
        # Inside the scope a schedule reads `step` as the optimizer's counter.
        # A scope hides the one around it, whose values go into it therefore.
        step = tf.cast(step, self.iterations.dtype)
        given = [
            (variable, tf.convert_to_tensor(variable))
            for variable in self.variables
            if variable.name == "learning_rate"
        ]
        with keras.StatelessScope([(self.iterations, step), *given]):
            rate = tf.convert_to_tensor(self.learning_rate)
        if self._given_learning_rate is None:
            return tf.cast(rate, dtype)
        unchanged = tf.equal(
            rate, tf.constant(self._given_learning_rate, rate.dtype)
        )
        return tf.where(
            unchanged,
            tf.constant(self._given_learning_rate, dtype),
            tf.cast(rate, dtype),
        )

    def move(self, params: list, gradients: list, step: Any, seed: Any) -> list:
        """Moves a list of inner weights by one step of the chain.

        Args:
            params: List of tensors.
            gradients: List of tensors shaped like `params`, clipped already.
            step: Integer tensor: the number of steps before it.
            seed: Integer tensor of shape `(2,)`.

        Returns:
            List of tensors: the next weights.
        """
        rates = {
            dtype: self.learning_rate_at(step, dtype)
            for dtype in {param.dtype for param in params}
        }
        seed = self._step_seed(seed, step)
        return [
            self._move_one(param, gradient, rates[param.dtype], seed, position)
            for position, (param, gradient) in enumerate(
                zip(params, gradients, strict=True)
            )
        ]

    def clip(self, gradients: list) -> list:
        """Clips gradients as `apply` does, differentiably."""
        return clip_as(self, gradients)

    def update_step(self, gradient, variable, learning_rate):
        # Called by Keras for each variable, with its gradient clipped. The
        # position comes from the method that Keras documents for subclasses.
        step = tf.convert_to_tensor(self.iterations)
        moved = self._move_one(
            tf.convert_to_tensor(variable),
            tf.cast(gradient, variable.dtype),
            self.learning_rate_at(step, variable.dtype),
            self._step_seed(self.chain_seed, step),
            self._get_variable_index(variable),
        )
        self.assign(variable, moved)

    @property
    def chain_seed(self) -> tf.Tensor:
        """The seed of this sampler's chain, an integer tensor `(2,)`."""
        return tf.constant([self.seed, 0], tf.int32)

    @property
    def _is_noisy(self):
        return self.temperature > 0.0 and self.noise_scale > 0.0

    def _step_seed(self, seed, step):
        return fold_in(seed, step) if self._is_noisy else None

    def _move_one(self, param, gradient, learning_rate, seed, position):
        return langevin_step(
            param,
            gradient,
            learning_rate=learning_rate,
            temperature=self.temperature,
            noise_scale=self.noise_scale,
            noise=self.noise,
            seed=fold_in(seed, position) if self._is_noisy else None,
        )

    def get_config(self):
        learning_rate = super().get_config()["learning_rate"]
        given = self._given_learning_rate
        if given is not None and learning_rate == np.float32(given):
            learning_rate = given
        return {
            "learning_rate": learning_rate,
            "temperature": self.temperature,
            "noise_scale": self.noise_scale,
            "noise": self.noise,
            "seed": self.seed,
            "clipnorm": self.clipnorm,
            "clipvalue": self.clipvalue,
            "global_clipnorm": self.global_clipnorm,
            "name": self.name,
        }
