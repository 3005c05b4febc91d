"""The regularization of one weight by learned strengths."""

import math
import weakref

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.regularizers import mixture
from keras_hposgld.regularizers.bounded_penalty import bounded_penalty
from keras_hposgld.regularizers.normalizers import log_normalizer


class WeightPenalty(keras.regularizers.Regularizer):
    """The regularization of one weight, as Keras calls it.

    It keeps no weight alive: a regularizer that serves one model after the
    other has the strengths of those that are still there.

    Attributes:
        owner: The `LearnableRegularizer` that keeps the variables.
        path: String, the path of the weight.
        shape: Tuple, the shape of the weight.
        strengths: Dictionary from `"l1"`, `"l2"` or `"decay"` to unconstrained
            variables.
        center: Variable that the weight is pulled to, or `None` for zero.
        address: String, the place of the weight in its model, see
            `hyperparameters.addresses`; `None` as long as nobody has said.
        scale: Variable, the common scale of the strengths, or `None`; this and
            what follows are for the rules of `strength_updates`.
        learns_scale: Whether that is drawn, too.
        pools: Whether the strengths of the weight are one.
        is_new: Whether they are as they were made.
        mixture: Variable shaped like the weight, the curvatures of
            `regularizers.mixture`, or `None`.
        times_mixing: Integer: above 0, the L1 part is that mixture.
    """

    scale: keras.Variable | None = None
    learns_scale = False
    pools = False
    is_new = False
    mixture: keras.Variable | None = None
    times_mixing = 0

    def __init__(self, owner, path, shape, strengths, center, address=None):
        self.owner = owner
        self.path = path
        self.shape = tuple(shape)
        self.strengths = strengths
        self.center = center
        self.address = address
        self._weight = None

    @property
    def weight(self) -> keras.Variable | None:
        """The weight's variable, `None` before it was seen or after its end."""
        return None if self._weight is None else self._weight()

    @property
    def is_waiting(self) -> bool:
        """Whether it was read from a file, and its weight is not yet seen."""
        return self._weight is None

    @property
    def variables(self) -> list[keras.Variable]:
        """The strengths, and of what else there is center, scale, mixture."""
        others = (self.center, self.scale, self.mixture)
        return [*self.strengths.values(), *(v for v in others if v is not None)]

    def bind(self, weight: keras.Variable, address: str | None) -> None:
        """Becomes the regularizer of a weight."""
        self._weight = weakref.ref(weight)
        self.path = weight.path
        self.address = address or self.address
        weight.regularizer = self

    def __call__(self, weight):
        weight = tf.convert_to_tensor(weight)
        if self.decays:  # a decay adds nothing to the loss
            return tf.zeros([], weight.dtype)
        return sum(
            self._penalty(weight, power, tf.convert_to_tensor(variable))
            for power, variable in self.strengths.items()
        )

    @property
    def decays(self) -> bool:
        """Whether this is a decoupled weight decay, and no penalty."""
        return "decay" in self.strengths

    def decay(self, weight) -> tf.Tensor:
        """What a step takes of the weight, over the learning rate."""
        unconstrained = tf.convert_to_tensor(self.strengths["decay"])
        deviation = self.deviation(weight, unconstrained.dtype)
        if self.owner.bijector is None:
            rate = self.owner.max_value * tf.sigmoid(unconstrained)
        else:
            rate = self.owner.constrain(unconstrained)
        rate = tf.reshape(rate, self.owner.aligned(self.shape))
        return tf.cast(rate * deviation, weight.dtype)

    def deviation(self, weight, dtype) -> tf.Tensor:
        """How far a value of the weight is from the center."""
        deviation = tf.cast(weight, dtype)
        if self.center is not None:
            deviation -= tf.cast(self.center, dtype)
        return deviation

    def _penalty(self, weight, power, unconstrained):
        deviation = self.deviation(weight, unconstrained.dtype)
        if power != mixture.POWER or not self.times_mixing:
            return self._size(deviation, power, unconstrained)
        # The value and the derivative by the strength are those of |d|: given
        # the weights, that is what the evidence asks for. The weights follow
        # the quadratic alone.
        still = tf.stop_gradient(deviation)
        return self._size(still, power, unconstrained) + mixture.quadratic(
            deviation, tf.convert_to_tensor(self.mixture)
        )

    def _size(self, deviation, power, unconstrained):
        if self.owner.bijector is None:
            return bounded_penalty(
                deviation,
                tf.reshape(unconstrained, self.owner.aligned(self.shape)),
                power,
                self.owner.max_value,
            )
        size = tf.abs(deviation) if power == "l1" else deviation**2
        return tf.reduce_sum(self._aligned_strength(power) * size)

    def curvature(self) -> tf.Tensor | None:
        """The second derivative of its quadratic part, `None` without one.

        It broadcasts against the weight.
        """
        parts = []
        if "l2" in self.strengths:
            parts.append(2.0 * self._aligned_strength("l2"))
        if self.times_mixing:
            parts.append(tf.convert_to_tensor(self.mixture))
        return sum(parts) if parts else None

    def log_normalizer(self, temperature) -> tf.Tensor | None:
        """See `Hyperparameter.log_normalizer`; `None` for a decay."""
        if self.decays:
            return None
        each = log_normalizer(
            {power: self.log_strength(power) for power in self.strengths},
            temperature,
        )
        shared = math.prod(self.shape) / math.prod(each.shape)
        return shared * tf.reduce_sum(each)

    def log_strength(self, power):
        """The logarithms of the strengths, in float32 at least."""
        unconstrained = tf.convert_to_tensor(self.strengths[power])
        # A sum over all weights is of no use in half precision.
        dtype = unconstrained.dtype
        unconstrained = tf.cast(
            unconstrained, dtype if dtype.size >= 4 else tf.float32
        )
        if self.owner.bijector is None:
            # Of strengths that are zero in their dtype, too.
            log_max = math.log(self.owner.max_value)
            return log_max + tf.math.log_sigmoid(unconstrained)
        return tf.math.log(self.owner.constrain(unconstrained))

    def strength_values(self) -> dict[str, np.ndarray]:
        """The strengths as NumPy arrays that broadcast against the weight."""
        return {
            power: self._aligned_strength(power).numpy()
            for power in self.strengths
        }

    def _aligned_strength(self, power):
        strength = self.owner.constrain(self.strengths[power])
        return tf.reshape(strength, self.owner.aligned(self.shape))

    def constants(self) -> dict[str, float]:
        """One number for each power with which the penalty is what it is now.

        Raises:
            LookupError: If Keras has no regularizer for it; the message says
                why.
        """
        if self.center is not None:
            raise LookupError(
                "Keras has none that pulls to the initial weights"
            )
        if self.decays:
            raise LookupError("Keras has weight decay in the optimizer alone")
        weight = np.asarray(self.weight)
        numbers = {}
        for power, value in self.strength_values().items():
            size = np.abs(weight) if power == "l1" else weight**2
            total = size.sum()
            numbers[power] = float(
                (value * size).sum() / total if total > 0 else value.mean()
            )
        return numbers
