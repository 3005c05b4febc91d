"""The step of one weight in Langevin dynamics, by the formulas of `sgld.py`."""

from typing import Any

import tensorflow as tf

from keras_hposgld.samplers import exponential
from keras_hposgld.samplers.noise import fold_in
from keras_hposgld.samplers.noise import plus_noise
from keras_hposgld.samplers.sampler import Sampler


class LangevinStep(Sampler):
    """What `SGLD` does to one weight, and what a preconditioner changes of it.

    Its attributes are the arguments of `SGLD` that have their names.
    """

    temperature: float
    noise_scale: float
    noise: str
    integrator: str

    @property
    def law_temperature(self) -> float | None:  # type: ignore[override]
        """That of the law; `None` at temperature 0."""
        return self.temperature * self.noise_scale**2 or None

    @property
    def solves_quadratic(self) -> bool:  # type: ignore[override]
        """Whether the integrator is the exponential one."""
        return self.integrator == "exponential"

    def with_curvature(
        self, state: dict, params: list, curvature: list | None
    ) -> dict:
        """The state with the curvature, which the scales of a step need."""
        return state | {exponential.SLOT: exponential.slots(params, curvature)}

    def _seeds(self, seed: tf.Tensor, index: Any) -> list:
        """The seeds whose noise a step averages; none without noise."""
        is_averaged = self.integrator == "averaged"
        steps = [index, index + 1] if is_averaged else [index]
        has_noise = self.law_temperature is not None
        return [fold_in(seed, step) for step in steps if has_noise]

    def _move_one(
        self,
        param: tf.Tensor,
        gradient: tf.Tensor,
        decay: tf.Tensor | None,
        own: dict,
        rate: tf.Tensor,
        seeds: list,
    ) -> tuple[tf.Tensor, dict]:
        if decay is not None:  # first, as in Keras's AdamW
            param = param - decay * rate
        force = self._force(rate, gradient, own)
        own = self._remember(own, gradient)
        if not self.momentum:
            return self._plus_noise(param - force, 1.0, own, rate, seeds), own
        velocity = self._plus_noise(
            self.momentum * own["velocity"] + force, -1.0, own, rate, seeds
        )
        return param - velocity, own | {"velocity": velocity}

    def _plus_noise(
        self,
        tensor: tf.Tensor,
        sign: float,
        own: dict,
        rate: tf.Tensor,
        seeds: list,
    ) -> tf.Tensor:
        if not seeds:
            return tensor
        variance = 2.0 * (1.0 - self.momentum) * self.temperature
        root = tf.sqrt(rate * tf.constant(variance, rate.dtype))
        return plus_noise(
            tensor,
            (sign * self.noise_scale) * root,
            self.noise,
            seeds,
            self._noise_variances(rate, own),
        )

    def _rates(self, tensors: list, index: Any) -> dict:
        """The learning rate in each dtype that occurs."""
        return {
            dtype: self.learning_rate_at(index, dtype)
            for dtype in {tensor.dtype for tensor in tensors}
        }

    # What a preconditioner changes.

    def _noise_variances(self, rate: tf.Tensor, own: dict) -> tf.Tensor | None:
        if not self.solves_quadratic:
            return None
        return exponential.noise_variance(rate, own)

    def _force(
        self, rate: tf.Tensor, vector: tf.Tensor, own: dict
    ) -> tf.Tensor:
        if not self.solves_quadratic:
            return rate * vector
        return exponential.force_scale(rate, own) * vector

    def _remember(self, own: dict, gradient: tf.Tensor) -> dict:
        return own


def at_position(state: dict, position: int) -> dict:
    """What a state holds for one weight."""
    return {name: slots[position] for name, slots in state.items()}
