"""The regularization of one weight by learned strengths."""

import numpy as np
import tensorflow as tf

from keras_hposgld.regularizers.bounded_penalty import bounded_penalty


class WeightPenalty:
    """The regularization of one weight, as Keras calls it.

    Attributes:
        owner: The `LearnableRegularizer` that keeps the variables.
        path: String, the path of the weight.
        shape: Tuple, the shape of the weight.
        strengths: Dictionary from `"l1"`, `"l2"` or `"decay"` to unconstrained
            variables.
        center: Variable that the weight is pulled to, or `None` for zero.
        weight: The weight's variable, `None` until it has been seen.
    """

    def __init__(self, owner, path, shape, strengths, center):
        self.owner = owner
        self.path = path
        self.shape = tuple(shape)
        self.strengths = strengths
        self.center = center
        self.weight = None

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
        deviation = tf.cast(weight, unconstrained.dtype)
        if self.center is not None:
            deviation -= tf.convert_to_tensor(self.center)
        if self.owner.bijector is None:
            rate = self.owner.max_value * tf.sigmoid(unconstrained)
        else:
            rate = self.owner.constrain(unconstrained)
        rate = tf.reshape(rate, self.owner.aligned(self.shape))
        return tf.cast(rate * deviation, weight.dtype)

    def _penalty(self, weight, power, unconstrained):
        deviation = tf.cast(weight, unconstrained.dtype)
        if self.center is not None:
            deviation -= tf.convert_to_tensor(self.center)
        if self.owner.bijector is None:
            return bounded_penalty(
                deviation,
                tf.reshape(unconstrained, self.owner.aligned(self.shape)),
                power,
                self.owner.max_value,
            )
        size = tf.abs(deviation) if power == "l1" else deviation**2
        return tf.reduce_sum(self._aligned_strength(power) * size)

    def strength_values(self) -> dict[str, np.ndarray]:
        """The strengths as NumPy arrays that broadcast against the weight."""
        return {
            power: self._aligned_strength(power).numpy()
            for power in self.strengths
        }

    def _aligned_strength(self, power):
        strength = self.owner.constrain(self.strengths[power])
        return tf.reshape(strength, self.owner.aligned(self.shape))
