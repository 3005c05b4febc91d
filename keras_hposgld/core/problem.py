"""Bilevel problems as pairs of pure functions.

A problem is `min E[outer_objective]` over the hyperparameters, where the
expectation is over inner weights drawn with density proportional to
`exp(-inner_objective / temperature)` (the paper's equations 2 to 6).

The functions take structures of tensors. Estimators work on flat lists;
`BilevelProblem.on_lists` is the one place where the two meet.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_AVERAGE = "Average it over the batch."

# What each function is of, and what to do where something else was given.
_FUNCTIONS = {
    "inner_objective": ("(hyperparameters, params, batch)", ""),
    "outer_objective": ("(hyperparameters, params, batch), or None", ""),
    "initial_params": (
        "the hyperparameters, or None where the start of the chain does not "
        "depend on them",
        " Pass tensors to `hypergradient(params=...)` instead.",
    ),
    "decay": (
        "(hyperparameters, params), or None",
        " Use `lambda h, w: h * w` for the weight decay of AdamW.",
    ),
    "project": (
        "the params, or None",
        " Use `lambda w: tf.maximum(w, 0.0)` for params that must not be "
        "negative.",
    ),
    "log_normalizer": (
        "(hyperparameters, temperature), or None",
        " Use `lambda s, t: -0.5 * tf.math.log(s)` for a penalty `s * w**2`.",
    ),
    "curvature": (
        "the hyperparameters, or None",
        " Use `lambda s: 2 * s` for a penalty `s * w**2`.",
    ),
}


class BilevelProblem:
    """An inner objective, an outer objective and where the inner chain starts.

    Args:
        inner_objective: Function `(hyperparameters, params, batch)` to a
            scalar: the training loss (a mean over the batch) plus the
            regularization. The paper's `L_T`.
        outer_objective: Function `(hyperparameters, params, batch)` to a
            scalar: the validation loss. The paper's `f`. `None`, the default:
            there is none, and `estimators.Evidence` is the one estimator that
            needs none.
        initial_params: Function `(hyperparameters)` to the params at which
            the chain starts, where that start depends on the hyperparameters
            (the identity for meta-learned initial weights). `None`, the
            default, where it does not.
        initial_carry: Structure of tensors that the inner objective hands
            from step to step, such as batch-normalization statistics or the
            counter of a random generator. With it, both objectives take a
            fourth argument `carry`, and `inner_objective` returns
            `(scalar, next_carry)`. Defaults to `None`: nothing is carried.
        decay: Function `(hyperparameters, params)` to a structure like the
            params (`None` where a tensor does not decay): the decoupled decay
            of the weights, linear in the params. Each step subtracts it times
            the sampler's learning rate, beside what the gradient does:
            `lambda h, w: h * w` is the weight decay of AdamW. Defaults to
            `None`: no decay.
        project: Function `(params)` to a structure like the params (`None`
            where a tensor is free): where a step puts the params that it has
            moved, such as `tf.nn.relu` for those that must not be negative.
            Estimators differentiate it, one tensor at a time: what a tensor
            becomes must not depend on another one. Defaults to `None`: the
            params are free.
        log_normalizer: Function `(hyperparameters, temperature)` to a scalar:
            the logarithm of the integral of `exp(-penalty / temperature)` over
            the params, up to a constant, where `penalty` is the part of the
            inner objective that is the prior of the params. For a strength `s`
            and a penalty `s * sum(w**2)` over `n` numbers it is
            `-0.5 * n * log(s)`. `None`, the default: it is not known.
        curvature: Function `(hyperparameters)` to a structure like the params
            (`None` where a tensor has none) of tensors `>= 0` that broadcast
            against them: the second derivatives of the quadratic part of the
            inner objective, `2 * s` for a penalty `s * sum(w**2)`. What
            `SGLD(integrator="exponential")` solves exactly. `None`, the
            default: it is not known.

    Raises:
        TypeError: If `inner_objective`, or another function that is given, is
            not callable.

    Reference:
        Kim and Hospedales, "A Stochastic Approach to Bi-Level Optimization
        for Hyperparameter Optimization and Meta Learning", AAAI 2025,
        equations 2 to 6.

    Example:

    ```python
    import keras_hposgld as hs
    import tensorflow as tf

    problem = hs.BilevelProblem(
        inner_objective=lambda strength, weight, batch: (
            (weight - 1.0) ** 2 + strength * weight**2
        ),
        outer_objective=lambda strength, weight, batch: (weight - 0.5) ** 2,
    )
    estimate = hs.hypergradient(
        problem,
        tf.constant(0.1),
        tf.constant(0.0),
        estimator=hs.estimators.HPOSGLD(burn_in=20, num_samples=20),
        sampler=hs.SGLD(learning_rate=0.1),
    )
    assert float(estimate.hypergradient) < 0  # a stronger pull would help
    ```
    """

    def __init__(
        self,
        inner_objective: Callable,
        outer_objective: Callable | None = None,
        initial_params: Callable | None = None,
        initial_carry: Any = None,
        decay: Callable | None = None,
        project: Callable | None = None,
        log_normalizer: Callable | None = None,
        curvature: Callable | None = None,
    ):
        _check_functions(
            inner_objective=inner_objective,
            outer_objective=outer_objective,
            initial_params=initial_params,
            decay=decay,
            project=project,
            log_normalizer=log_normalizer,
            curvature=curvature,
        )
        self.inner_objective = inner_objective
        self.outer_objective: Any = outer_objective
        self.initial_params: Any = initial_params
        self.decay = decay
        self.project: Any = project
        self.log_normalizer: Any = log_normalizer
        self.curvature = curvature
        self.carries = initial_carry is not None
        self._initial_carry = initial_carry if self.carries else ()
        # What a backward pass multiplies the objectives by, and divides their
        # derivatives by again: above 1 for layers that compute in float16.
        self.loss_scale = 1.0

    @property
    def initial_carry(self) -> Any:
        """What the first inner step is handed."""
        return self._initial_carry

    def inner(
        self, hyperparameters: Any, params: Any, batch: Any, carry: Any
    ) -> tuple[tf.Tensor, Any]:
        """Evaluates the inner objective: `(scalar, next carry)`."""
        if self.carries:
            value, carry = self.inner_objective(
                hyperparameters, params, batch, carry
            )
        else:
            value = self.inner_objective(hyperparameters, params, batch)
        return _scalar(value, "inner_objective", _AVERAGE), carry

    def outer(
        self, hyperparameters: Any, params: Any, batch: Any, carry: Any
    ) -> tf.Tensor:
        """Evaluates the outer objective: a scalar."""
        arguments: tuple = (hyperparameters, params, batch)
        if self.carries:
            arguments += (carry,)
        value = self.outer_objective(*arguments)
        return _scalar(value, "outer_objective", _AVERAGE)

    def decay_of(self, hyperparameters: Any, params: Any) -> Any:
        """The decoupled decay, like the params; `None` where there is none."""
        if self.decay is None:
            return None
        return self.decay(hyperparameters, params)

    def log_normalizer_of(
        self, hyperparameters: Any, temperature: float
    ) -> tf.Tensor:
        """The log of the integral of the prior, where that is known."""
        value = self.log_normalizer(hyperparameters, temperature)
        return _scalar(value, "log_normalizer", "Sum it over the params.")

    def curvature_of(self, hyperparameters: Any) -> Any:
        """The curvature of the quadratic part, like the params, or `None`."""
        if self.curvature is None:
            return None
        return self.curvature(hyperparameters)

    def passes_derivatives(self, carry: Any) -> list[bool]:
        """Whether derivatives go through each tensor of a carry."""
        return [x.dtype.is_floating for x in tf.nest.flatten(carry)]

    def on_lists(self, hyperparameters: Any, params: Any) -> "BilevelProblem":
        """The same problem as functions of flat lists of tensors.

        Args:
            hyperparameters: Structure of tensors, as the problem's functions
                take it.
            params: Structure of tensors, likewise.
        """

        def pack(structure: Any, tensors: list) -> Any:
            return tf.nest.pack_sequence_as(structure, tensors)

        def flat(function: Any) -> Any:
            """One of the hyperparameters, the params and more."""
            if function is None:
                return None
            return lambda hypers, weights, *rest: function(
                pack(hyperparameters, hypers), pack(params, weights), *rest
            )

        def of_hypers(function: Any) -> Any:
            """One of the hyperparameters, and of numbers."""
            if function is None:
                return None
            return lambda hypers, *rest: function(
                pack(hyperparameters, hypers), *rest
            )

        def listed(function: Any) -> Any:
            """One that returns a structure, to which `None` belongs."""
            if function is None:
                return None
            return lambda *args: tf.nest.flatten(function(*args))

        project = None
        if self.project is not None:

            def project(weights: list) -> Any:
                return self.project(pack(params, weights))

        return BilevelProblem(
            flat(self.inner_objective),
            flat(self.outer_objective),
            listed(of_hypers(self.initial_params)),
            self.initial_carry if self.carries else None,
            listed(flat(self.decay)),
            listed(project),
            of_hypers(self.log_normalizer),
            listed(of_hypers(self.curvature)),
        )


def _check_functions(**functions: Any) -> None:
    """Refuses what cannot be called; all but the inner one may be `None`."""
    for name, function in functions.items():
        is_missing = function is None and name != "inner_objective"
        if not (is_missing or callable(function)):
            of_what, way_out = _FUNCTIONS[name]
            raise TypeError(
                f"`{name}` must be a function of {of_what}. "
                f"Received: {name}={function!r}.{way_out}"
            )


def _scalar(value: Any, name: str, way_out: str) -> tf.Tensor:
    value = tf.convert_to_tensor(value)
    if value.shape.rank != 0:
        raise ValueError(
            f"`{name}` must return a scalar. Received: a tensor of shape "
            f"{tuple(value.shape)}. {way_out}"
        )
    return value
