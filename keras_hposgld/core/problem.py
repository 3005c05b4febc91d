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


class BilevelProblem:
    """An inner objective, an outer objective and where the inner chain starts.

    Args:
        inner_objective: Function `(hyperparameters, params, batch)` to a
            scalar: the training loss (a mean over the batch) plus the
            regularization. The paper's `L_T`.
        outer_objective: Function `(hyperparameters, params, batch)` to a
            scalar: the validation loss. The paper's `f`.
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

    Raises:
        TypeError: If an objective, `initial_params`, `decay` or `project` is
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
        outer_objective: Callable,
        initial_params: Callable | None = None,
        initial_carry: Any = None,
        decay: Callable | None = None,
        project: Callable | None = None,
    ):
        for name, function in (
            ("inner_objective", inner_objective),
            ("outer_objective", outer_objective),
        ):
            if not callable(function):
                raise TypeError(
                    f"`{name}` must be a function of (hyperparameters, params, "
                    f"batch). Received: {name}={function!r}."
                )
        if initial_params is not None and not callable(initial_params):
            raise TypeError(
                "`initial_params` must be a function of the hyperparameters, "
                "or None where the start of the chain does not depend on "
                f"them. Received: initial_params={initial_params!r}. Pass "
                "tensors to `hypergradient(params=...)` instead."
            )
        if decay is not None and not callable(decay):
            raise TypeError(
                "`decay` must be a function of (hyperparameters, params), or "
                f"None. Received: decay={decay!r}. Use "
                "`lambda h, w: h * w` for the weight decay of AdamW."
            )
        if project is not None and not callable(project):
            raise TypeError(
                "`project` must be a function of the params, or None. "
                f"Received: project={project!r}. Use `lambda w: "
                "tf.maximum(w, 0.0)` for params that must not be negative."
            )
        self.inner_objective = inner_objective
        self.outer_objective = outer_objective
        self.initial_params: Any = initial_params
        self.decay = decay
        self.project: Any = project
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
        return _scalar(value, "inner_objective"), carry

    def outer(
        self, hyperparameters: Any, params: Any, batch: Any, carry: Any
    ) -> tf.Tensor:
        """Evaluates the outer objective: a scalar."""
        arguments: tuple = (hyperparameters, params, batch)
        if self.carries:
            arguments += (carry,)
        return _scalar(self.outer_objective(*arguments), "outer_objective")

    def decay_of(self, hyperparameters: Any, params: Any) -> Any:
        """The decoupled decay, like the params; `None` where there is none."""
        if self.decay is None:
            return None
        return self.decay(hyperparameters, params)

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

        def flat(objective: Callable) -> Callable:
            return lambda hypers, weights, *rest: objective(
                pack(hyperparameters, hypers), pack(params, weights), *rest
            )

        initial_params = None
        if self.initial_params is not None:

            def initial_params(hypers: list) -> list:
                start = self.initial_params(pack(hyperparameters, hypers))
                return tf.nest.flatten(start)

        decay = None
        if self.decay is not None:

            def decay(hypers: list, weights: list) -> list:
                given = self.decay_of(
                    pack(hyperparameters, hypers), pack(params, weights)
                )
                return tf.nest.flatten(given)

        project = None
        if self.project is not None:

            def project(weights: list) -> list:
                return tf.nest.flatten(self.project(pack(params, weights)))

        return BilevelProblem(
            flat(self.inner_objective),
            flat(self.outer_objective),
            initial_params,
            self.initial_carry if self.carries else None,
            decay,
            project,
        )


def _scalar(value: Any, name: str) -> tf.Tensor:
    value = tf.convert_to_tensor(value)
    if value.shape.rank != 0:
        raise ValueError(
            f"`{name}` must return a scalar. Received: a tensor of shape "
            f"{tuple(value.shape)}. Average it over the batch."
        )
    return value
