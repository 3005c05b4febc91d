"""The steps of Keras's own optimizers, as samplers without noise.

The step is not written again here. Keras's `update_step` computes it, called
with tensors in place of variables (`keras_stand_in.py`), so that it equals what
`optimizer.apply` does. What `apply` does around it (weight decay before, moving
averages after, clipping first) follows the order of Keras.

The form of each step, which derivatives need, is in `keras_forms.py`.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.one_pass import in_one_pass
from keras_hposgld.samplers.clipping import clip_as
from keras_hposgld.samplers.keras_forms import form_of
from keras_hposgld.samplers.keras_forms import Slots
from keras_hposgld.samplers.keras_forms import VELOCITIES
from keras_hposgld.samplers.keras_stand_in import StandIn
from keras_hposgld.samplers.sampler import rate_of
from keras_hposgld.samplers.sampler import Sampler

AVERAGES = "_model_variables_moving_average"


class KerasSteps(Sampler):
    """A Keras optimizer as a sampler, see `from_keras.from_optimizer`.

    Args:
        optimizer: `keras.optimizers.Optimizer` of a kind in `FORMS`.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self.optimizer = optimizer
        form = form_of(optimizer)
        self._form = form
        self.slot_names = form.slots(optimizer)
        if optimizer.use_ema:
            self.slot_names += (AVERAGES,)
        self._counts_momentum = isinstance(optimizer, keras.optimizers.Nadam)
        self.scale_slots = tuple(
            name for name in form.slots(optimizer) if name not in VELOCITIES
        ) + (("_u_product",) if self._counts_momentum else ())

    def keras_optimizer(self) -> keras.optimizers.Optimizer:
        """The optimizer whose steps these are."""
        return self.optimizer

    def __repr__(self) -> str:
        return f"from_optimizer({type(self.optimizer).__name__})"

    def first_step(self, is_new: bool) -> Any:
        """Corrections for the start begin anew with the slots."""
        return 0 if is_new else super().first_step(is_new)

    @property
    def momentum(self) -> float:  # type: ignore[override]
        """mu, the optimizer's own."""
        return self._form.momentum(self.optimizer)

    def init(self, params: list) -> dict[str, list]:
        """The slots of an optimizer that has taken no step."""
        state = {
            name: [tf.zeros_like(param) for param in params]
            for name in self.slot_names
        }
        if AVERAGES in state:
            state[AVERAGES] = [tf.identity(param) for param in params]
        if self._counts_momentum:
            state["_u_product"] = [tf.ones([], params[0].dtype)]
        return state

    def step(
        self,
        params: list,
        gradient: list,
        decay: list | None,
        state: dict,
        index: Any,
        seed: Any,
    ) -> tuple[list, dict]:
        """Moves the weights by one step, see `Sampler.step`."""
        optimizer, rate = self.optimizer, rate_of(self.optimizer, index)
        iterations = tf.cast(index, optimizer.iterations.dtype)
        gradient = self.clip(gradient)
        state = self._count_momentum(state, iterations)
        moved, after = [], {name: list(slots) for name, slots in state.items()}
        for position, param in enumerate(params):
            alpha = tf.cast(rate, param.dtype)
            own = self._own_rate(position)
            before = param
            if own is not None:  # in Keras's order, which fixes the rounding
                param = param - before * tf.cast(own, param.dtype) * alpha
            if decay is not None and decay[position] is not None:
                param = param - decay[position] * alpha
            stand_in = StandIn(optimizer, state, position, iterations)
            param = stand_in.step(gradient[position], param, rate)
            for name in self.slot_names:
                after[name][position] = stand_in.slot(name)
            if optimizer.use_ema:
                after[AVERAGES][position] = self._average(
                    state[AVERAGES][position], param, iterations
                )
            moved.append(param)
        return moved, after

    def force_scale(self, vector: list, state: dict, index: Any) -> list:
        """A times a vector."""
        return self._scale(self._form.force, vector, state, index)

    def velocity_scale(self, vector: list, state: dict, index: Any) -> list:
        """B times a vector."""
        if self._form.velocity is None:
            return vector
        return self._scale(self._form.velocity, vector, state, index)

    def drift_scale(self, vector: list, state: dict, index: Any) -> list:
        """A B times a vector."""
        force, velocity = self._form.force, self._form.velocity
        if velocity is None:
            return self.force_scale(vector, state, index)
        return self._scale(
            lambda s: force(s) * velocity(s), vector, state, index
        )

    def direct_scale(
        self, vector: list, state: dict, index: Any
    ) -> list | None:
        """E times a vector; `None` without Nesterov's look ahead."""
        if self._form.direct is None:
            return None
        return self._scale(self._form.direct, vector, state, index)

    def uniform_scale(
        self, state: dict, index: Any, dtype: Any
    ) -> tf.Tensor | None:
        """The learning rate for SGD without Nesterov's look ahead."""
        if self._form.adapts or self._form.velocity is not None:
            return None
        return self.learning_rate_at(index, dtype)

    def learning_rate_at(self, index: Any, dtype: Any = "float32") -> tf.Tensor:
        """The learning rate of a step, as Keras has it."""
        return tf.cast(rate_of(self.optimizer, index), dtype)

    def clip(self, gradient: list) -> list:
        """Clips gradients as `apply` does, differentiably."""
        return clip_as(self.optimizer, gradient)

    def own_decay(self, params: list) -> list | None:
        """The optimizer's `weight_decay` times the weights it applies to."""
        if self.optimizer.weight_decay is None:
            return None
        rates = [self._own_rate(position) for position in range(len(params))]
        return [
            tf.zeros_like(param)
            if rate is None
            else tf.cast(rate, param.dtype) * param
            for param, rate in zip(params, rates, strict=True)
        ]

    @property
    def state_variables(self) -> dict[str, list]:
        """The slots of the optimizer, once it is built."""
        variables = {
            name: list(getattr(self.optimizer, name))
            for name in self.slot_names
        }
        if self._counts_momentum:
            variables["_u_product"] = [self.optimizer._u_product]
        return variables

    def largest_curvature_scale(self) -> float | None:
        """1 for SGD; `None` where the step adapts to the gradient."""
        return None if self._form.adapts else 1.0

    def _scale(
        self, function: Callable, vector: list, state: dict, index: Any
    ) -> list:
        rate = rate_of(self.optimizer, index)

        @in_one_pass
        def scaled(part: tf.Tensor, of: dict, rate: Any, number: Any) -> Any:
            return part * function(Slots(self.optimizer, of, rate, number))

        return [
            scaled(
                part,
                {
                    name: slots[0 if name == "_u_product" else position]
                    for name, slots in state.items()
                    if name in (self.scale_slots or ())
                },
                tf.cast(rate, part.dtype),
                tf.cast(index + 1, part.dtype),
            )
            for position, part in enumerate(vector)
        ]

    def _own_rate(self, position: int) -> float | None:
        """The weight decay of a weight, `None` where it has none."""
        optimizer = self.optimizer
        if optimizer.weight_decay is None:
            return None
        # Which weights are left out is private to Keras, and known by
        # variable: before the optimizer is built, none is.
        if optimizer.built and not optimizer._use_weight_decay(
            optimizer._trainable_variables[position]
        ):
            return None
        return optimizer.weight_decay

    def _count_momentum(self, state: dict, iterations: tf.Tensor) -> dict:
        """What Nadam does once a step: the product of its momenta so far."""
        if not self._counts_momentum:
            return state
        (product,) = state["_u_product"]
        number = tf.cast(iterations + 1, product.dtype)
        product = product * self.optimizer.beta_1  # in Keras's order
        product = product * (1.0 - 0.5 * keras.ops.power(0.96, number))
        return state | {"_u_product": [product]}

    def _average(
        self, average: tf.Tensor, param: tf.Tensor, iterations: tf.Tensor
    ) -> tf.Tensor:
        """The moving average of a weight, which starts at the first value."""
        not_first = tf.cast(iterations != 0, param.dtype)
        momentum = not_first * self.optimizer.ema_momentum
        return momentum * average + (1 - momentum) * param
