"""The contract of a sampler, and the conventions that all of them share.

A sampler makes one step of the inner weights theta. With the gradient of the
inner objective L_T (a mean over the batch, plus the regularization), a velocity
M and a decoupled weight decay d, a step reads

    M     <- mu M + A grad L_T - noise
    theta <- theta - B M - E grad L_T - alpha d(lambda, theta)

where mu is a number and A, B, E are diagonal maps: the force scale, the
velocity scale and the direct scale (zero but for Nesterov's steps). alpha is
the learning rate of the step. For a sampler without velocity mu is 0.

The maps may depend on the sampler's state, which is the state *after* the step
that they belong to. In derivatives they are held fixed. That is exact for the
estimators of a stationary law, which does not depend on them, and a convention
for those that differentiate an unrolled chain.

If a sampler is noisy, its law is proportional to
`exp(-L_T(theta) / law_temperature)`, up to the error of the step size.

Estimators use nothing else of a sampler. To add one, write a module with a
subclass of `Sampler`, registered with `@register("alias")`.
"""

import abc
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.samplers.noise import seed_from


class Sampler(abc.ABC):
    """The step of an inner chain, as pure functions of tensors.

    Lists of tensors are ordered like the weights. A state is a dictionary from
    a name to such a list.

    Attributes:
        momentum: Float, mu. Defaults to `0.0`.
        law_temperature: Float, the temperature of the law that the chain
            samples. `None` (default): it has no law, such as an optimizer.
        seed: Integer, from which the noise is made.
        scale_slots: Tuple of strings: which entries of the state the scales
            depend on and a step changes. `None` (default): all.
        solves_quadratic: Whether the step solves the quadratic part of the
            inner objective exactly, see `with_curvature`. Defaults to `False`.
        takes_step_sizes: Whether its state holds a step size for each weight
            that somebody has to set. Defaults to `False`.
        draws_exactly: Whether `fit` is to draw the weights of a linear model
            from their law instead, where the training data alone are learned
            from. `None`: where steps would not mix. Defaults to `False`.
        given_momentum: Float, the momentum that such a sampler was asked for;
            `None` (default): whoever sets the step sizes chooses it.

    Example:

    ```python
    import keras_hposgld as hs
    import tensorflow as tf

    class GradientDescent(hs.samplers.Sampler):
        def init(self, params):
            return {}

        def step(self, params, gradient, decay, state, index, seed):
            moved = [p - 0.1 * g for p, g in zip(params, gradient)]
            return moved, state

        def force_scale(self, vector, state, index):
            return [0.1 * part for part in vector]

        def learning_rate_at(self, index, dtype="float32"):
            return tf.constant(0.1, dtype)

    problem = hs.BilevelProblem(
        lambda h, w, batch: (w - 1.0) ** 2 + h * w**2,
        lambda h, w, batch: (w - 0.5) ** 2,
    )
    estimate = hs.hypergradient(
        problem, 0.1, 0.0, estimator="rmd", sampler=GradientDescent()
    )
    assert float(estimate.hypergradient) < 0
    ```
    """

    momentum: float = 0.0
    law_temperature: float | None = None
    seed: int = 0
    scale_slots: tuple[str, ...] | None = None
    solves_quadratic: bool = False
    takes_step_sizes: bool = False
    draws_exactly: bool | None = False
    given_momentum: float | None = None

    @abc.abstractmethod
    def init(self, params: list) -> dict[str, list]:
        """The state before the first step."""

    @abc.abstractmethod
    def step(
        self,
        params: list,
        gradient: list,
        decay: list | None,
        state: dict,
        index: Any,
        seed: Any,
    ) -> tuple[list, dict]:
        """Moves the weights by one step.

        Args:
            params: List of tensors, theta.
            gradient: List of tensors, the gradient of L_T, not clipped.
            decay: List of tensors, the decoupled decay d(lambda, theta), which
                the step multiplies by its learning rate. `None`, for all of
                the weights or for one of them: there is none.
            state: What `init` or the step before returned.
            index: Integer tensor: the number of steps before this one.
            seed: Integer tensor of shape `(2,)`, the seed of the chain.

        Returns:
            The weights and the state after the step.
        """

    @abc.abstractmethod
    def force_scale(self, vector: list, state: dict, index: Any) -> list:
        """A times a vector, with the state after step `index`."""

    def velocity_scale(self, vector: list, state: dict, index: Any) -> list:
        """B times a vector, with the state after step `index`."""
        return vector

    def drift_scale(self, vector: list, state: dict, index: Any) -> list:
        """A B times a vector; a sampler may have a faster way."""
        forced = self.force_scale(vector, state, index)
        return self.velocity_scale(forced, state, index)

    def direct_scale(
        self, vector: list, state: dict, index: Any
    ) -> list | None:
        """E times a vector, with the state after step `index`, or `None`."""
        return None

    @abc.abstractmethod
    def learning_rate_at(self, index: Any, dtype: Any = "float32") -> tf.Tensor:
        """alpha, the learning rate of step `index`, as a scalar tensor."""

    def uniform_scale(
        self, state: dict, index: Any, dtype: Any
    ) -> tf.Tensor | None:
        """A B as a scalar tensor, if it is the same number for all weights.

        A number saves a pass over the weights. `None` (default): it is not one
        number.

        Args:
            state: The state after step `index`.
            index: Integer tensor, the step.
            dtype: Dtype of the number.
        """
        return None

    def clip(self, gradient: list) -> list:
        """What the step makes of a gradient first, differentiably."""
        return gradient

    def own_decay(self, params: list) -> list | None:
        """The fixed part of the decoupled decay, which `step` adds itself."""
        return None

    def restart(self, state: dict) -> dict:
        """The state in which a chain resumes the one before it."""
        return state

    def renew(self, state: dict, params: list) -> dict:
        """The state of a chain that does not start where the last one ended.

        Args:
            state: That of the chain before.
            params: List of tensors, where the chain starts.
        """
        return self.init(params)

    def with_curvature(
        self, state: dict, params: list, curvature: list | None
    ) -> dict:
        """The state in which a chain begins, if `solves_quadratic`.

        Args:
            state: That of `init` or `restart`.
            params: List of tensors.
            curvature: List of tensors that broadcast against them, `None` for
                a weight without one: the second derivatives of the quadratic
                part of the inner objective. `None`: nobody knows it.
        """
        return state

    @property
    def chain_seed(self) -> tf.Tensor:
        """The seed of this sampler's chain, an integer tensor `(2,)`."""
        return seed_from(self.seed)

    def first_step(self, is_new: bool) -> Any:
        """How many steps a chain counts as taken, from the optimizer.

        Args:
            is_new: Whether the chain starts anew, see `renew`.
        """
        return tf.convert_to_tensor(self.keras_optimizer().iterations.value)

    # A method: Keras's saving would follow an attribute around in a circle.
    def keras_optimizer(self) -> Any:
        """The Keras optimizer whose variables hold the state in a Keras model.

        It also counts the steps. `None`: the sampler serves
        `keras_hposgld.hypergradient` alone.
        """
        return self if isinstance(self, keras.optimizers.Optimizer) else None

    @property
    def state_variables(self) -> dict[str, list]:
        """The Keras variables that hold the state, in a built optimizer."""
        return {}

    def largest_curvature_scale(self) -> float | None:
        """By how much the step may exceed the learning rate.

        A step of `learning_rate` times this number times the curvature of a
        penalty must stay below 1, or the weights diverge. `None`: the step
        adapts to the gradient, and no bound is known.
        """
        return 1.0


def effective_scale(
    sampler: Sampler, vector: list, state: dict, index: Any
) -> list:
    """S times a vector: what a force that stays moves the weights by.

    S = A B / (1 - mu) + E, so that `S grad L_T + alpha d = 0` where a chain
    without noise stands still.
    """
    moved = sampler.drift_scale(vector, state, index)
    if sampler.momentum:
        moved = [part / (1.0 - sampler.momentum) for part in moved]
    direct = sampler.direct_scale(vector, state, index)
    if direct is None:
        return moved
    return [a + b for a, b in zip(moved, direct, strict=True)]


def rate_of(optimizer: keras.optimizers.Optimizer, index: Any) -> tf.Tensor:
    """The learning rate of step `index` of a Keras optimizer."""
    # Inside the scope a schedule reads `index` as the optimizer's counter.
    # A scope hides the one around it, whose values go into it therefore.
    counter = optimizer.iterations
    step = tf.cast(index, counter.dtype)
    if optimizer.gradient_accumulation_steps:
        # Private to Keras, whose schedules follow it: it counts gradients,
        # where `iterations` counts steps. A step is taken with the last one.
        counter = optimizer._iterations
        step = (step + 1) * optimizer.gradient_accumulation_steps - 1
    given = [
        (variable, tf.convert_to_tensor(variable))
        for variable in optimizer.variables
        if variable.name == "learning_rate"
    ]
    with keras.StatelessScope([(counter, step), *given]):
        return tf.convert_to_tensor(optimizer.learning_rate)


def exact_rate(rate: tf.Tensor, given: float | None, dtype: Any) -> tf.Tensor:
    """A learning rate in a dtype, without the rounding of Keras.

    Keras keeps it in float32, where 0.05 is 0.0500000007. A float64 chain takes
    the number that was given for as long as Keras holds its float32 image.

    Args:
        rate: Scalar tensor, what Keras holds.
        given: Float, what the optimizer was made with; `None` for a schedule.
        dtype: Dtype of the result.
    """
    if given is None:
        return tf.cast(rate, dtype)
    unchanged = tf.equal(rate, tf.constant(given, rate.dtype))
    return tf.where(unchanged, tf.constant(given, dtype), tf.cast(rate, dtype))
