"""Where a chain is, and the outer objective there."""

from typing import Any
from typing import NamedTuple


class Position(NamedTuple):
    """Where a chain is.

    Attributes:
        params: List of tensors, the weights.
        carry: What the inner objective carries from step to step.
        sampler_state: The state of the sampler.
        unprojected: List of tensors, the params before the projection that
            ended the step, `()` for those that are free; empty if all are.
    """

    params: list
    carry: Any
    sampler_state: Any
    unprojected: list = []


class OuterGradient(NamedTuple):
    """The outer objective with both its derivatives.

    Attributes:
        value: Scalar, f; `None` where it was not asked for.
        direct: List like the hyperparameters, df/dlambda; `None` where there
            is no dependence.
        v: List like the params, df/dtheta.
        by_carry: List of the derivatives by what is carried, those of one
            replica; empty unless asked for.
    """

    value: Any
    direct: list
    v: list
    by_carry: list = []
