"""Preconditioned SGLD: steps of a weight's own size.

With a diagonal matrix P the step reads

    theta <- theta - alpha P grad L_T + sqrt(2 alpha tau) P^(1/2) noise,

whose law is exp(-L_T / tau) for any P that is constant. So P is made from the
gradients of *past* chains and stays as it is while a chain runs:

    s <- beta_2 s + (1 - beta_2) grad^2          at each step,
    P = 1 / (sqrt(s / mean(s)) + epsilon)        when a chain begins,

divided by its mean over all weights, so that `learning_rate` keeps its meaning.
`epsilon` has no unit. It bounds P by `(1 + epsilon) / epsilon`, so that weights
which had no gradient do not take all of the step.
"""

from typing import Any

import tensorflow as tf

from keras_hposgld.core.checks import check_number
from keras_hposgld.core.one_pass import in_one_pass
from keras_hposgld.samplers.registry import register
from keras_hposgld.samplers.sgld import SGLD


@register("psgld")
class PSGLD(SGLD):
    """SGLD with a diagonal preconditioner from the squared gradients.

    The preconditioner is constant within a chain: the first chain is one of
    `SGLD`. In a plain `model.fit` each step is a chain. It costs two copies of
    the weights more than `SGLD`.

    Args:
        learning_rate: As in `SGLD`.
        temperature: As in `SGLD`.
        momentum: As in `SGLD`.
        beta_2: Float, `0 <= beta_2 < 1`: how slowly the mean of the squared
            gradients forgets. Defaults to `0.99`.
        epsilon: Float `> 0`, without unit: added to the root of the squared
            gradient, which is 1 in the mean over the weights. No weight takes
            a step of more than `(1 + epsilon) / epsilon` times the learning
            rate. Defaults to `0.5`.
        integrator: `"euler"` or `"averaged"` (default), as in `SGLD`.
        **sgld_arguments: `noise`, `noise_scale`, `seed`, `clipnorm`,
            `clipvalue`, `global_clipnorm` and `name`, as in `SGLD`.

    Raises:
        ValueError: As `SGLD`; if `beta_2` or `epsilon` is out of range; if
            `integrator` is `"exponential"`.

    Reference:
        Li, Chen, Carlson and Carin, "Preconditioned Stochastic Gradient
        Langevin Dynamics for Deep Neural Networks", AAAI 2016. Their
        preconditioner changes at each step, which leaves a term of the law
        out; this one does not.

    Example:

    ```python
    import keras_hposgld as hs
    import tensorflow as tf

    problem = hs.BilevelProblem(
        lambda h, w, batch: tf.reduce_sum([1.0, 100.0] * (w - 1.0) ** 2)
        + h * tf.reduce_sum(w**2),
        lambda h, w, batch: tf.reduce_sum((w - 0.5) ** 2),
    )
    sampler, estimate = hs.PSGLD(0.002, temperature=1e-4, seed=1), None
    for chain in range(3):
        estimate = hs.hypergradient(
            problem, 0.1, tf.zeros([2]), sampler=sampler, previous=estimate
        )
    assert float(estimate.hypergradient) < 0
    ```
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        temperature: float = 0.0,
        momentum: float = 0.0,
        beta_2: float = 0.99,
        epsilon: float = 0.5,
        integrator: str = "averaged",
        name: str = "psgld",
        **sgld_arguments: Any,
    ):
        if integrator == "exponential":
            raise ValueError(
                '`integrator` must be "euler" or "averaged" in `PSGLD`, whose '
                "steps have a size of their own for each weight. Received: "
                f"integrator={integrator!r}. Use "
                '`SGLD(integrator="exponential")`.'
            )
        super().__init__(
            learning_rate,
            temperature,
            momentum=momentum,
            integrator=integrator,
            name=name,
            **sgld_arguments,
        )
        self.beta_2 = check_number("beta_2", beta_2, below=1)
        self.epsilon = check_number("epsilon", epsilon, zero_allowed=False)

    slot_initializers = SGLD.slot_initializers | {
        "preconditioner": "ones",
        "squares": "zeros",
    }

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Names of what the state holds for each weight."""
        return (*super().slot_names, "preconditioner", "squares")

    def init(self, params: list) -> dict[str, list]:
        """The state before the first step: a preconditioner of one."""
        ones = [tf.ones_like(param) for param in params]
        return super().init(params) | {"preconditioner": ones}

    def restart(self, state: dict) -> dict:
        """Renews the preconditioner by the gradients of the past chains."""
        roots = _relative_roots(state["squares"])
        scales = [1.0 / (root + self.epsilon) for root in roots]
        mean = _mean(scales)
        return state | {
            "preconditioner": [s / tf.cast(mean, s.dtype) for s in scales]
        }

    def renew(self, state: dict, params: list) -> dict:
        """As at first, but for the gradients of the past chains."""
        return self.init(params) | {"squares": state["squares"]}

    def force_scale(self, vector: list, state: dict, index: Any) -> list:
        """The learning rate times the preconditioner times a vector."""
        rates = self._rates(vector, index)
        return [
            _product(rates[part.dtype], part, scale)
            for part, scale in zip(vector, state["preconditioner"], strict=True)
        ]

    def largest_curvature_scale(self) -> float:
        """The bound of the preconditioner."""
        return (1.0 + self.epsilon) / self.epsilon

    def apply(self, grads: list, trainable_variables: Any = None) -> None:
        """As in Keras; then the preconditioner is renewed."""
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise ValueError(
                "`PSGLD` cannot train a plain model on several replicas. "
                "Received: a strategy with "
                f"{tf.distribute.get_strategy().num_replicas_in_sync} "
                "replicas. Use it in `BilevelModel`, or use `SGLD`."
            )
        super().apply(grads, trainable_variables)
        variables = self.state_variables
        renewed = self.restart(
            {"squares": [tf.convert_to_tensor(v) for v in variables["squares"]]}
        )
        for variable, value in zip(
            variables["preconditioner"], renewed["preconditioner"], strict=True
        ):
            self.assign(variable, value)

    def _noise_variances(self, rate: tf.Tensor, own: dict) -> tf.Tensor:
        return own["preconditioner"]

    def _force(
        self, rate: tf.Tensor, vector: tf.Tensor, own: dict
    ) -> tf.Tensor:
        return _product(rate, vector, own["preconditioner"])

    def _remember(self, own: dict, gradient: tf.Tensor) -> dict:
        weight = tf.constant(1.0 - self.beta_2, gradient.dtype)
        squares = _renewed(weight, gradient, own["squares"])
        return own | {"squares": squares}

    def get_config(self) -> dict:
        return super().get_config() | {
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


@in_one_pass
def _product(
    rate: tf.Tensor, vector: tf.Tensor, preconditioner: tf.Tensor
) -> tf.Tensor:
    return rate * (preconditioner * vector)


@in_one_pass
def _renewed(
    weight: tf.Tensor, gradient: tf.Tensor, squares: tf.Tensor
) -> tf.Tensor:
    return squares + weight * (tf.square(gradient) - squares)


def _relative_roots(squares: list) -> list:
    """Roots of the squares over their mean; zero where there are none yet."""
    mean = _mean(squares)
    return [
        tf.sqrt(tf.math.divide_no_nan(s, tf.cast(mean, s.dtype)))
        for s in squares
    ]


def _mean(tensors: list) -> tf.Tensor:
    """The mean of all entries of all tensors, in float32 or wider."""
    dtype = tensors[0].dtype if tensors[0].dtype.size >= 4 else tf.float32
    total = sum(tf.reduce_sum(tf.cast(tensor, dtype)) for tensor in tensors)
    size = sum(tf.size(tensor) for tensor in tensors)
    return total / tf.cast(size, dtype)
