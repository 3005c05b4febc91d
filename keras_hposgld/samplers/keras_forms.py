"""The form of the steps of Keras's optimizers, which derivatives need.

A step is `M <- mu M + A grad`, `theta <- theta - B M - E grad` (`sampler.py`).
mu and the diagonal maps are written here, from the slots after the step:

    SGD      A = alpha, B = 1; with Nesterov's look ahead B = mu, E = alpha
    RMSprop  A = alpha / sqrt(v + eps), B = 1
    Adam     A = 1 - beta_1, B = alpha_t / (sqrt(v) + eps), where alpha_t has
             both corrections for the start
    Adamax   as Adam, with the largest gradient in place of sqrt(v)
    Nadam    as Adam, with a schedule of momenta; its look ahead is E
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

VELOCITIES = ("momentums", "_momentums", "_m")  # which no scale depends on


class Slots(NamedTuple):
    """What the form of one weight's step depends on.

    Attributes:
        optimizer: `keras.optimizers.Optimizer`, for its constants.
        of: Dictionary from a slot's name to its tensor after the step.
        rate: Scalar tensor, the learning rate, in the dtype of the weight.
        number: Scalar tensor of that dtype: which step it is, from 1.
    """

    optimizer: Any
    of: dict
    rate: tf.Tensor
    number: tf.Tensor

    def constant(self, name: str) -> tf.Tensor:
        """A constant of the optimizer, in the dtype of the weight."""
        return keras.ops.cast(getattr(self.optimizer, name), self.rate.dtype)

    def power(self, name: str) -> tf.Tensor:
        """A constant of the optimizer to the power of the step's number."""
        return self.constant(name) ** self.number


class Form(NamedTuple):
    """The form of an optimizer's step.

    Attributes:
        slots: Function of the optimizer to the names of its attributes that
            hold a list of variables, one for each weight. They are private to
            Keras, which has no public name for them.
        momentum: Function of the optimizer to mu.
        force: Function of `Slots` to A, a scalar or a tensor.
        velocity: Likewise to B; `None` for 1.
        direct: Likewise to E; `None` for 0.
        adapts: Whether the step adapts to the size of the gradient.
    """

    slots: Callable
    momentum: Callable
    force: Callable
    velocity: Callable | None = None
    direct: Callable | None = None
    adapts: bool = True


def _adam_slots(optimizer: Any) -> tuple[str, ...]:
    extra = ("_velocity_hats",) if optimizer.amsgrad else ()
    return ("_momentums", "_velocities", *extra)


def _adam_velocity(s: Slots) -> tf.Tensor:
    v = s.of["_velocity_hats" if s.optimizer.amsgrad else "_velocities"]
    rate = s.rate * tf.sqrt(1.0 - s.power("beta_2"))
    rate /= 1.0 - s.power("beta_1")
    return rate / (tf.sqrt(v) + s.constant("epsilon"))


def _adamax_velocity(s: Slots) -> tf.Tensor:
    scale = (1.0 - s.power("beta_1")) * (s.of["_u"] + s.constant("epsilon"))
    return s.rate / scale


def _nadam_scale(s: Slots) -> tf.Tensor:
    """alpha over the root of the corrected mean of the squared gradients."""
    corrected = s.of["_velocities"] / (1.0 - s.power("beta_2"))
    return s.rate / (tf.sqrt(corrected) + s.constant("epsilon"))


def _nadam_momentum(s: Slots, number: tf.Tensor) -> tf.Tensor:
    """u, the momentum of a step by Nadam's schedule."""
    decay = keras.ops.cast(0.96, s.rate.dtype) ** number
    return s.constant("beta_1") * (1.0 - 0.5 * decay)


def _nadam_velocity(s: Slots) -> tf.Tensor:
    ahead = _nadam_momentum(s, s.number + 1.0)
    product = tf.cast(s.of["_u_product"], s.rate.dtype) * ahead
    return _nadam_scale(s) * ahead / (1.0 - product)


def _nadam_direct(s: Slots) -> tf.Tensor:
    product = tf.cast(s.of["_u_product"], s.rate.dtype)
    weight = (1.0 - _nadam_momentum(s, s.number)) / (1.0 - product)
    return _nadam_scale(s) * weight


def _rmsprop_slots(optimizer: Any) -> tuple[str, ...]:
    return (
        "_velocities",
        *(("_momentums",) if optimizer.momentum > 0 else ()),
        *(("_average_gradients",) if optimizer.centered else ()),
    )


def _rmsprop_force(s: Slots) -> tf.Tensor:
    square = s.of["_velocities"]
    if s.optimizer.centered:
        square = square - tf.square(s.of["_average_gradients"])
    # Not by the root that the step takes: TensorFlow would share it, and then
    # compute the step itself by other operations than Keras does.
    return s.rate * tf.math.rsqrt(square + s.constant("epsilon"))


def _beta_1(optimizer: Any) -> float:
    return optimizer.beta_1


def _mean_of_gradients(s: Slots) -> float:
    return 1.0 - s.optimizer.beta_1


def _in_float32(number: float) -> float:
    # Keras casts some of its constants, and a cast goes through float32.
    return float(np.float32(number))


_ADAM = Form(_adam_slots, _beta_1, _mean_of_gradients, _adam_velocity)
FORMS = {
    keras.optimizers.SGD: Form(
        lambda optimizer: ("momentums",) if optimizer.momentum else (),
        lambda optimizer: _in_float32(optimizer.momentum),
        lambda s: s.rate,
        adapts=False,
    ),
    keras.optimizers.RMSprop: Form(
        _rmsprop_slots,
        lambda optimizer: max(optimizer.momentum, 0.0),
        _rmsprop_force,
    ),
    keras.optimizers.Adam: _ADAM,
    keras.optimizers.AdamW: _ADAM,
    keras.optimizers.Adamax: Form(
        lambda optimizer: ("_m", "_u"),
        _beta_1,
        _mean_of_gradients,
        _adamax_velocity,
    ),
    keras.optimizers.Nadam: Form(
        lambda optimizer: ("_momentums", "_velocities"),
        lambda optimizer: _in_float32(optimizer.beta_1),
        lambda s: 1.0 - s.constant("beta_1"),
        _nadam_velocity,
        _nadam_direct,
    ),
}
# Keras's SGD stores the velocity with the other sign, which no map depends on.


def form_of(optimizer: keras.optimizers.Optimizer) -> Form:
    """The form of an optimizer's step, from its kind and arguments."""
    form = FORMS[type(optimizer)]
    if getattr(optimizer, "nesterov", False) and form.momentum(optimizer):
        return form._replace(
            velocity=lambda s: s.constant("momentum"), direct=lambda s: s.rate
        )
    return form
