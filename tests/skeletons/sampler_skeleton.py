"""Gradient descent with a fixed scale for each weight: a sampler to copy.

    theta <- theta - alpha s grad L_T - alpha d

In the form of every sampler (`keras_hposgld/samplers/sampler.py`): mu = 0 and
B = 1, since there is no velocity; A = alpha s; E = 0.
"""

import tensorflow as tf

import keras_hposgld as hs


@hs.samplers.register("scaled_descent")
class ScaledDescent(hs.samplers.Sampler):
    """Gradient descent whose rate differs from weight to weight.

    Args:
        learning_rate: Float `> 0`. Defaults to `0.01`.
        scales: List of floats `> 0`, one for each weight of the problem.
            `None` (default): 1 for all.

    Raises:
        ValueError: If a number is not above 0.
    """

    # A noisy sampler also sets `law_temperature`, and draws its noise from
    # the seed and the index that `step` gets, and from nothing else.

    def __init__(self, learning_rate=0.01, scales=None):
        for name, values in (
            ("learning_rate", [learning_rate]),
            ("scales", scales or []),
        ):
            if not all(value > 0 for value in values):
                raise ValueError(
                    f"`{name}` must be above 0. Received: {name}={values}."
                )
        self.learning_rate = learning_rate
        self.scales = scales

    def init(self, params):
        # A dictionary from a name to a list like the params, such as
        # {"velocity": [...]}. This sampler remembers nothing.
        return {}

    def step(self, params, gradient, decay, state, index, seed):
        force = self.force_scale(self.clip(gradient), state, index)
        moved = []
        for number, param in enumerate(params):
            new = param - force[number]
            if decay is not None and decay[number] is not None:
                alpha = self.learning_rate_at(index, param.dtype)
                new -= alpha * decay[number]
            moved.append(new)
        return moved, state

    def force_scale(self, vector, state, index):
        # Linear in the vector. Derivatives hold A fixed.
        scales = self.scales or [1.0] * len(vector)
        return [
            self.learning_rate_at(index, part.dtype) * scale * part
            for scale, part in zip(scales, vector, strict=True)
        ]

    def learning_rate_at(self, index, dtype="float32"):
        return tf.constant(self.learning_rate, dtype)

    def get_config(self):
        return {"learning_rate": self.learning_rate, "scales": self.scales}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
