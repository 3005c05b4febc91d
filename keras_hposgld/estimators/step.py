"""One step of a chain that is sampled, as an estimator's equations see it."""

from typing import Any
from typing import NamedTuple

from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.estimators.position import OuterGradient
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.scales import Scales


class Step(NamedTuple):
    """What an estimator's equations refer to.

    Attributes:
        index: Integer tensor, the number of the step, from 0.
        before: `Position` theta^{m-1}, where the step began.
        after: `Position` theta^m.
        inner: `LinearizedGradient` at theta^{m-1}.
        outer: `OuterGradient`, where `outer_at_end_of_step` says.
        scales: `Scales` of the step.
        inner_batch: The batch of the inner objective.
        outer_batch: The batch of the outer objective.
    """

    index: Any
    before: Position
    after: Position
    inner: LinearizedGradient
    outer: OuterGradient
    scales: Scales
    inner_batch: Any
    outer_batch: Any
