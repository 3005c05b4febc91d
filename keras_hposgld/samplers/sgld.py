"""Stochastic gradient Langevin dynamics, with momentum or without.

Whatever samples inner weights follows these conventions:

* the target density is proportional to `exp(-energy(w) / temperature)`, with
  the inner objective for the energy;
* one step reads
  `w <- w - learning_rate * grad + sqrt(2 * learning_rate * temperature)
  * noise_scale * noise`, with `noise` of zero mean and unit variance;
* with a momentum mu, the step is that of Keras's SGD, and the noise that its
  velocity gets has the variance `2 * (1 - mu) * learning_rate * temperature`;
* `temperature=0` is plain gradient descent, bit for bit, without noise;
* the noise of a step is a function of the sampler's seed, the number of steps
  taken before and the position of the weight in its list: equal seeds give
  equal chains, on any device and under any compiler.

The paper's `epsilon` (equations 10 and 24) is `2 * learning_rate *
temperature`, and its `kappa` is `noise_scale`. At a kappa other than 1 the law
that is sampled has the temperature `temperature * kappa**2`.
"""

import numbers
import random
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.core.checks import check_seed
from keras_hposgld.samplers import exponential
from keras_hposgld.samplers.clipping import clip_as
from keras_hposgld.samplers.langevin_step import at_position
from keras_hposgld.samplers.langevin_step import LangevinStep
from keras_hposgld.samplers.noise import fold_in
from keras_hposgld.samplers.noise import NOISES
from keras_hposgld.samplers.registry import register
from keras_hposgld.samplers.sampler import exact_rate
from keras_hposgld.samplers.sampler import rate_of

INTEGRATORS = ("euler", "averaged", "exponential")
SCALES = ("force_scale", "velocity_scale")
CLIPPING = ("clipnorm", "clipvalue", "global_clipnorm")
ARGUMENTS = ("temperature", "noise_scale", "noise", "seed", *CLIPPING, "name")
# Samplers that `SGLD(name)` makes: their files know this one.
BY_NAME: dict[str, type] = {}
ALL_ARGUMENTS = (*ARGUMENTS, "momentum", "integrator")  # but the learning rate


@register("sgld")
class SGLD(LangevinStep, keras.optimizers.Optimizer):
    """Stochastic gradient Langevin dynamics as a Keras optimizer.

    It drives the inner chain of every estimator. By the same step it samples an
    ordinary Keras model when passed to `model.compile`.

    Args:
        learning_rate: Float `> 0` or a
            `keras.optimizers.schedules.LearningRateSchedule` over inner steps.
            Defaults to `0.01`. `"auto"`, with the evidence: step sizes from
            the data, see `docs/evidence.md`; then `momentum` is by default 0.95
            if each batch holds all examples, else 0. `integrator` may be
            `"averaged"`, which follows strengths of any size, or `"exact"`: no
            steps, but draws of the weights of a linear model. `fit` chooses.
        temperature: Float `>= 0`, in the unit of the loss. Defaults to `0.0`,
            which is plain gradient descent. With a loss that is a mean over
            `n` examples, the Bayesian posterior has temperature `1 / n`.
        noise_scale: Float `>= 0`, the paper's kappa. Defaults to `1.0`.
        noise: `"gaussian"` (default) or `"rademacher"`: plus or minus one, of
            the same mean and variance, and cheaper.
        seed: Integer, `0 <= seed < 2**64`. `None`, the default, draws one from
            Python's generator, which `keras.utils.set_random_seed` fixes.
        clipnorm: Float, clips each gradient to this norm.
        clipvalue: Float, clips each entry of the gradients.
        global_clipnorm: Float, clips the norm of all gradients together.
        name: String.
        momentum: Float, `0 <= momentum < 1`. Defaults to `0.0`. Costs one copy
            of the weights.
        integrator: `"euler"` (default) takes new noise at each step.
            `"averaged"` takes the mean of this step's noise and the next one's:
            averages over the law are then right to second order in the
            learning rate. With momentum that is BAOAB. `"exponential"` solves
            a quadratic penalty exactly, so that no strength is too large for
            the step: `BilevelProblem(curvature=)` says which, in a Keras model
            the regularizers of the weights do. It takes no momentum.

    Raises:
        ValueError: If a number is out of range or not finite; if `noise` or
            `integrator` is unknown; if there is a momentum with
            `integrator="exponential"`.

    Reference:
        Welling and Teh, ICML 2011; equations 10 and 24 of Kim and Hospedales,
        AAAI 2025. Averaged noise: Leimkuhler and Matthews, Applied Mathematics
        Research eXpress 2013.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(hs.SGLD(0.1, temperature=1e-4, momentum=0.9), loss="mse")
    model.fit(np.ones((8, 3)), np.ones((8, 1)), epochs=2, verbose=0)
    ```
    """

    def __new__(
        cls, learning_rate: Any = 0.01, *args: Any, **kwargs: Any
    ) -> Any:
        if cls is SGLD and isinstance(learning_rate, str):
            cls = BY_NAME.get(learning_rate, cls)
        return super().__new__(cls)

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
        *,
        momentum: float = 0.0,
        integrator: str = "euler",
    ):
        if isinstance(learning_rate, numbers.Real):
            learning_rate = check_number("learning_rate", learning_rate, False)
        limits = (clipnorm, clipvalue, global_clipnorm)
        clipping = dict(zip(CLIPPING, limits, strict=True))
        for argument, value in clipping.items():
            if value is not None:
                check_number(argument, value, zero_allowed=False)
        super().__init__(learning_rate=learning_rate, name=name, **clipping)
        self.temperature = check_number("temperature", temperature)
        self.noise_scale = check_number("noise_scale", noise_scale)
        self.noise = check_known("noise", noise, NOISES)
        self.momentum = check_number("momentum", momentum, below=1)
        self.integrator = check_known("integrator", integrator, INTEGRATORS)
        if self.integrator == "exponential" and self.momentum:
            raise ValueError(
                '`momentum` must be 0 with `integrator="exponential"`, which '
                "solves the equation without it. Received: "
                f"momentum={self.momentum}. Leave it out, or use "
                'integrator="averaged".'
            )
        drawn = random.randint(1, 2**31 - 1) if seed is None else seed
        self.seed = check_seed("seed", drawn)
        is_number = isinstance(learning_rate, float)
        self._given_learning_rate = learning_rate if is_number else None
        self._slots: dict[str, list] = {}

    # The contract of a sampler.

    scale_slots = ()  # a preconditioner is constant within a chain
    slot_initializers = {"velocity": "zeros"}

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of what the state holds for each weight."""
        return ("velocity",) if self.momentum else ()

    def init(self, params: list) -> dict[str, list]:
        """The state before the first step: a velocity of zero."""
        return {
            name: [tf.zeros_like(param) for param in params]
            for name in self.slot_names
        }

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
        gradient, rates = self.clip(gradient), self._rates(params, index)
        seeds = self._seeds(seed, index)
        moved: list = []
        after: dict[str, list] = {name: [] for name in state}
        for position, param in enumerate(params):
            param, own = self._move_one(
                param,
                gradient[position],
                None if decay is None else decay[position],
                at_position(state, position),
                rates[param.dtype],
                [fold_in(one, position) for one in seeds],
            )
            moved.append(param)
            for name, slots in after.items():
                slots.append(own[name])
        return moved, after

    def move(self, params: list, gradients: list, step: Any, seed: Any) -> list:
        """The weights after one step of a chain that has just begun."""
        return self.step(
            params, gradients, None, self.init(params), step, seed
        )[0]

    def force_scale(self, vector: list, state: dict, index: Any) -> list:
        """The learning rate times a vector, or what an integrator makes of it.

        See `exponential`.
        """
        rates = self._rates(vector, index)
        return [
            self._force(rates[part.dtype], part, at_position(state, position))
            for position, part in enumerate(vector)
        ]

    def uniform_scale(
        self, state: dict, index: Any, dtype: Any
    ) -> tf.Tensor | None:
        """The learning rate; `None` where a subclass has scales of its own."""
        own = [getattr(type(self), name) for name in SCALES]
        known = own == [getattr(SGLD, name) for name in SCALES]
        is_number = known and not self.solves_quadratic
        return self.learning_rate_at(index, dtype) if is_number else None

    def learning_rate_at(self, index: Any, dtype: Any = "float32") -> tf.Tensor:
        """The learning rate of step `index`, as a scalar tensor."""
        return exact_rate(
            rate_of(self, index), self._given_learning_rate, dtype
        )

    def clip(self, gradient: list) -> list:
        """Clips gradients as `apply` does, differentiably."""
        return clip_as(self, gradient)

    @property
    def state_variables(self) -> dict[str, list]:
        """The slots of the optimizer, once it is built."""
        return {name: list(slots) for name, slots in self._slots.items()}

    # What Keras calls.

    def build(self, variables: list) -> None:
        """Creates the slots; called by Keras."""
        if self.built:
            return
        super().build(variables)
        self._slots = {
            # Not `add_optimizer_variables`, which Keras has from 3.10 on.
            name: [
                self.add_variable_from_reference(
                    variable, name, self.slot_initializers[name]
                )
                for variable in variables
            ]
            for name in self.slot_names
        }

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: Any
    ) -> None:
        # Called by Keras for each variable, with its gradient clipped. Keras
        # documents `_get_variable_index` for subclasses.
        step = tf.convert_to_tensor(self.iterations)
        position = self._get_variable_index(variable)
        seeds = self._seeds(self.chain_seed, step)
        param = tf.convert_to_tensor(variable)
        state = {
            name: tf.convert_to_tensor(slots[position])
            for name, slots in self._slots.items()
        }
        if self.solves_quadratic:
            # Private to Keras: what is passed here knows no regularizer.
            weight = self._trainable_variables[position]
            curvature = [exponential.of_weight(weight)]
            (state[exponential.SLOT],) = exponential.slots([param], curvature)
        moved, own = self._move_one(
            param,
            tf.cast(gradient, param.dtype),
            None,
            state,
            self.learning_rate_at(step, param.dtype),
            [fold_in(one, position) for one in seeds],
        )
        self.assign(variable, moved)
        for name, slots in self._slots.items():
            self.assign(slots[position], own[name])

    def get_config(self) -> dict:
        learning_rate = super().get_config()["learning_rate"]
        given = self._given_learning_rate
        if given is not None and learning_rate == np.float32(given):
            learning_rate = given
        arguments = {name: getattr(self, name) for name in ALL_ARGUMENTS}
        return {"learning_rate": learning_rate} | arguments
