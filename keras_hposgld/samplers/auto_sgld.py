"""SGLD whose step sizes come from the data: `SGLD("auto")`.

Each weight (a kernel, a bias) has a step size eta of its own, which `fit` sets
from the second derivatives of the loss, see `training.step_sizes`. The
curvature h of a quadratic penalty of the weight is known, so that it need not
be found: with c the learning rate, a number without unit,

    P = 1 / (1 / (c eta) + h)

is a preconditioner that is small where either of both is large. Written with
its root on both sides,

    M     <- mu M + P^(1/2) grad L_T - sqrt(2 (1 - mu) tau) noise
    theta <- theta - P^(1/2) M,

the law of the velocity M does not depend on P, and goes on where strengths or
step sizes have changed between two chains. The noise is averaged over two
steps, which leaves the law of a Gaussian exact at any step that is stable. With
`integrator="exponential"` the step is that of `exponential.py`, of the size
c eta. With `integrator="exact"` there are no steps: `fit` draws the weights of
a linear model from their law, see `training.exact_draws`.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.checks import check_number
from keras_hposgld.samplers import exponential
from keras_hposgld.samplers.langevin_step import at_position
from keras_hposgld.samplers.sgld import BY_NAME
from keras_hposgld.samplers.sgld import SGLD

AUTO = "auto"
SLOT = "step_size"
INTEGRATORS = ("averaged", "exponential", "exact")
MOMENTUM = 0.95


@keras.saving.register_keras_serializable("keras_hposgld")
class AutoSGLD(SGLD):
    """What `SGLD("auto")` makes; see there.

    Attributes:
        given_momentum: Float, or `None`: `fit` chooses.
        given_integrator: String, or `None`: `fit` chooses.
    """

    takes_step_sizes = True

    def __init__(
        self,
        learning_rate: str = AUTO,
        temperature: float = 0.0,
        *arguments: Any,
        momentum: float | None = None,
        integrator: str | None = None,
        **named_arguments: Any,
    ):
        if learning_rate != AUTO:
            raise ValueError(
                f'`learning_rate` must be "{AUTO}" in `AutoSGLD`. Received: '
                f"learning_rate={learning_rate!r}. Use `SGLD(learning_rate)`."
            )
        given = integrator
        if given not in (None, *INTEGRATORS):
            raise ValueError(
                f"`integrator` must be one of {INTEGRATORS} with learning_rate="
                f'"{AUTO}": the step has to follow strengths of any size. '
                f"Received: integrator={given!r}. Leave it out."
            )
        # Draws have no step; `fit` refuses where it cannot make them.
        integrator = "exponential" if given == "exponential" else "averaged"
        if momentum is not None:
            momentum = check_number("momentum", momentum, below=1)
        takes_momentum = integrator == "averaged"
        default = MOMENTUM if takes_momentum else 0.0
        super().__init__(
            1.0,
            temperature,
            *arguments,
            momentum=default if momentum is None else momentum,
            integrator=integrator,
            **named_arguments,
        )
        self.given_momentum = momentum
        self.given_integrator = given

    # The contract of a sampler.

    scale_slots = ()
    slot_initializers = SGLD.slot_initializers | {SLOT: "zeros"}

    @property
    def solves_quadratic(self) -> bool:  # type: ignore[override]
        """Always: its steps know the curvature of a penalty."""
        return True

    @property
    def draws_exactly(self) -> bool | None:  # type: ignore[override]
        """As `integrator="exact"` says; `None`: `fit` chooses."""
        if self.given_integrator is None:
            return None
        return self.given_integrator == "exact"

    @property
    def slot_names(self) -> tuple[str, ...]:
        """A velocity, also where `fit` chooses to have no momentum."""
        return ("velocity",)

    def init(self, params: list) -> dict[str, list]:
        """Refused: nobody has set the step sizes."""
        raise ValueError(
            f'`SGLD("{AUTO}")` needs the step sizes that `fit` of a '
            '`BilevelModel` finds, with `hypergradient="evidence"`. Received: '
            f"sampler={self!r} in another place. Give `SGLD` a learning rate."
        )

    def renew(self, state: dict, params: list) -> dict:
        """No velocity, and the step sizes as they are."""
        return super().init(params) | {SLOT: state[SLOT]}

    def force_scale(self, vector: list, state: dict, index: Any) -> list:
        """P^(1/2) times a vector, or A of the exponential step."""
        return self._scaled(vector, state, index)

    def velocity_scale(self, vector: list, state: dict, index: Any) -> list:
        """P^(1/2) times a vector, or the vector."""
        if self.integrator == "exponential":
            return vector
        return self._scaled(vector, state, index)

    def largest_curvature_scale(self) -> float | None:
        """Unknown: the steps follow the curvature."""
        return None

    # What Keras calls.

    def build(self, variables: list) -> None:
        """Creates the slots; a step size is one number for each variable."""
        if self.built:
            return
        super().build(variables)
        self._slots[SLOT] = [
            self.add_variable(
                shape=(), initializer="zeros", dtype=v.dtype, name=SLOT
            )
            for v in variables
        ]

    def update_step(self, gradient: Any, variable: Any, rate: Any) -> None:
        # Called by Keras where a plain model is trained with it.
        self.init([])

    def get_config(self) -> dict:
        return super().get_config() | {
            "learning_rate": AUTO,
            "momentum": self.given_momentum,
            "integrator": self.given_integrator,
        }

    # One weight.

    def _move_one(
        self,
        param: tf.Tensor,
        gradient: tf.Tensor,
        decay: tf.Tensor | None,
        own: dict,
        rate: tf.Tensor,
        seeds: list,
    ) -> tuple[tf.Tensor, dict]:
        rate = rate * tf.cast(own[SLOT], rate.dtype)
        if self.integrator == "exponential":
            return super()._move_one(param, gradient, decay, own, rate, seeds)
        if decay is not None:
            param = param - decay * rate
        root = _root(rate, own)
        velocity = self._plus_noise(
            self.momentum * own["velocity"] + root * gradient,
            -1.0,
            own,
            tf.ones_like(rate),
            seeds,
        )
        return param - root * velocity, own | {"velocity": velocity}

    def _noise_variances(self, rate: tf.Tensor, own: dict) -> tf.Tensor | None:
        if self.integrator != "exponential":
            return None
        return super()._noise_variances(rate, own)

    def _scaled(self, vector: list, state: dict, index: Any) -> list:
        rates = self._rates(vector, index)
        result = []
        for position, part in enumerate(vector):
            own = at_position(state, position)
            rate = rates[part.dtype] * tf.cast(own[SLOT], part.dtype)
            if self.integrator == "exponential":
                scale = exponential.force_scale(rate, own)
            else:
                scale = _root(rate, own)
            result.append(scale * part)
        return result


BY_NAME[AUTO] = AutoSGLD


def _root(rate: tf.Tensor, own: dict) -> tf.Tensor:
    """P^(1/2), from c eta and the curvature."""
    h = tf.cast(own[exponential.SLOT], rate.dtype)
    return tf.sqrt(rate / (1.0 + rate * h))
