"""A chain: a problem, a sampler, and what every estimator asks of the two.

All bookkeeping between an estimator's equations and the tensors stands here,
once: the means over the replicas, clipping, the scale of the loss, the decay of
the weights, and the scales of the sampler's step.
"""

import warnings
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.derivatives import linearize_gradient
from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.core.derivatives import value_and_gradients
from keras_hposgld.core.problem import BilevelProblem
from keras_hposgld.core.projection import project
from keras_hposgld.core.projection import pull_back
from keras_hposgld.core.vectors import add
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.estimators.carried import floats
from keras_hposgld.estimators.position import OuterGradient
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.scales import Scales
from keras_hposgld.samplers.sampler import Sampler


class Chain(NamedTuple):
    """What stays fixed while a chain runs.

    Attributes:
        problem: `BilevelProblem` over flat lists.
        hyperparameters: List of tensors.
        sampler: `Sampler`.
        first_step: Integer, or integer tensor: the number of steps that the
            sampler took before this chain. Schedules and noise go on from it.
        seed: Integer tensor of shape `(2,)`.
        kept: What the estimate of the chain before this one had as its
            `kept`; empty at first, or where nothing is remembered.
        names: Tuple of strings, what to call the hyperparameters in messages.
        average: Function from a list of tensors to their means over the
            replicas; the identity where there is one.
        sampler_state: The state of the sampler at the end of the chain before
            this one. `None` (default): it begins anew.
    """

    problem: BilevelProblem
    hyperparameters: list
    sampler: Sampler
    first_step: Any
    seed: tf.Tensor
    kept: Any = ()
    names: tuple = ()
    average: Callable = lambda tensors: tensors
    sampler_state: Any = None

    def begin(self, params: list) -> Position:
        """The position before the first step."""
        if self.sampler_state is None:
            state = self.sampler.init(params)
        else:
            state = self.sampler.restart(self.sampler_state)
        _, unprojected = project(self.problem.project, params)  # their form
        state = self.with_curvature(state, params)
        return Position(params, self.problem.initial_carry, state, unprojected)

    def with_curvature(self, state: dict, params: list) -> dict:
        """A state of the sampler that knows the curvature, if it has to."""
        if not self.sampler.solves_quadratic:
            return state
        curvature = self.problem.curvature_of(self.hyperparameters)
        return self.sampler.with_curvature(state, params, curvature)

    def number(self, index: Any) -> tf.Tensor:
        """The steps that the sampler took before step `index` of the chain."""
        return tf.cast(self.first_step, tf.int64) + tf.cast(index, tf.int64)

    def mean(self, *lists: list) -> list:
        """The means over the replicas of lists of tensors, `None` kept.

        Of several lists, a list of as many lists.
        """
        given = [t for tensors in lists for t in tensors if t is not None]
        means = iter(self.average(given) if given else ())
        results = [
            [None if t is None else next(means) for t in tensors]
            for tensors in lists
        ]
        return results[0] if len(lists) == 1 else results

    def linearize(
        self,
        position: Position,
        batch: Any,
        sources: list,
        through_carry: bool = False,
    ) -> LinearizedGradient:
        """The gradient of the inner objective, ready to be differentiated.

        It is the mean over the replicas, not clipped. Products with its
        derivative are those of one replica: `mean` averages them.

        Args:
            position: `Position`.
            batch: The batch of the inner objective.
            sources: List of tensors to differentiate by.
            through_carry: Whether the pullback takes, after the vector, one
                for what is carried on, see `carried.floats`.
        """
        carried: list = []

        def inner(params: list) -> tuple[tf.Tensor, Any]:
            value, carry = self.problem.inner(
                self.hyperparameters, params, batch, position.carry
            )
            if through_carry:
                carried[:] = floats(self.problem, carry)
            return value, carry

        linearized = linearize_gradient(
            inner,
            position.params,
            sources,
            lambda gradient: [*self.mean(gradient), *carried],
            self.problem.loss_scale,
        )
        gradient = linearized.gradient[: len(position.params)]
        return linearized._replace(gradient=gradient)

    def outer(
        self, params: list, carry: Any, batch: Any, by_carry: Any = ()
    ) -> OuterGradient:
        """The outer objective and its derivatives, those of one replica.

        Args:
            params: List of tensors.
            carry: What the inner objective carried.
            batch: The batch of the outer objective.
            by_carry: List of tensors of the carry to differentiate by, too.
        """
        number = len(self.hyperparameters)
        value, direct, v = value_and_gradients(
            lambda params: self.problem.outer(
                self.hyperparameters, params, batch, carry
            ),
            [*self.hyperparameters, *by_carry],
            params,
            self.problem.loss_scale,
        )
        return OuterGradient(
            value, direct[:number], v, with_zeros(direct[number:], by_carry)
        )

    def linearize_outer(
        self, params: list, carry: Any, batch: Any
    ) -> LinearizedGradient:
        """The gradient of the outer objective, as `linearize` has the inner."""
        return linearize_gradient(
            lambda params: (
                self.problem.outer(self.hyperparameters, params, batch, carry),
                None,
            ),
            params,
            params,
            self.mean,
        )

    def move(
        self, position: Position, inner: LinearizedGradient, index: Any
    ) -> Position:
        """The position after step `index` of the chain."""
        params, state = self.sampler.step(
            position.params,
            inner.gradient,
            self.problem.decay_of(self.hyperparameters, position.params),
            position.sampler_state,
            self.number(index),
            self.seed,
        )
        params, unprojected = project(self.problem.project, params)
        return Position(params, inner.carry, state, unprojected)

    def pulled(self, vector: list, unprojected: list) -> list:
        """A vector times the derivative of the projection that ends a step.

        Args:
            vector: List of tensors like the params.
            unprojected: That of the position after the step.
        """
        if not unprojected:
            return vector
        return pull_back(self.problem.project, unprojected, vector)

    def scales(self, state: Any, index: Any) -> Scales:
        """The scales of step `index`, from the sampler's state after it."""
        return Scales(self.sampler, state, self.number(index))

    def products(
        self, inner: LinearizedGradient, vector: list, of_carry: Any = ()
    ) -> list:
        """A vector times the derivative of what a step follows.

        That is the clipped gradient, averaged over the replicas.

        Args:
            inner: `LinearizedGradient`.
            vector: List of tensors like the params.
            of_carry: List of tensors, one for each that is carried on, if
                `inner` was linearized through the carry. It is carried on by
                each replica for itself, as are the derivatives by it.

        Returns:
            A list with one tensor for each of the sources of `inner`, or
            `None` where there is no dependence.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inner.gradient)
            clipped = self.sampler.clip(list(inner.gradient))
        vector = tape.gradient(clipped, inner.gradient, output_gradients=vector)
        products = inner.pullback([*vector, *of_carry])
        number = len(products) - len(of_carry)
        return [*self.mean(products[:number]), *products[number:]]

    def decay(self, hyperparameters: list, params: list) -> list:
        """The decoupled decay d, the sampler's own part included.

        Returns:
            A list like the params, `None` where there is none; empty if no
            weight decays.
        """
        parts = (
            self.problem.decay_of(hyperparameters, params),
            self.sampler.own_decay(params),
        )
        given = [part for part in parts if part is not None]
        return add(*given) if given else []

    def decay_products(
        self, params: list, vector: list, scales: Scales
    ) -> tuple:
        """A vector times the derivatives of the decoupled decay of a step.

        Returns:
            `vector . dD/dlambda` and `vector . dD/dtheta` with D = alpha d, as
            two lists with `None` where there is no dependence.
        """
        hypers = list(self.hyperparameters)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([hypers, params])
            total = self.decay(hypers, params)
        decayed = [n for n, part in enumerate(total) if part is not None]
        if not decayed:
            return [None] * len(hypers), [None] * len(params)
        return tape.gradient(
            [total[n] for n in decayed],
            [hypers, list(params)],
            output_gradients=[
                self.sampler.learning_rate_at(scales.index, vector[n].dtype)
                * vector[n]
                for n in decayed
            ],
        )

    def report_unused(self, mixed: list, direct: list) -> None:
        """Warns of hyperparameters that neither objective depends on.

        Args:
            mixed: Products with the mixed derivative, `None` where there is
                no dependence.
            direct: Derivatives of the outer objective, likewise `None`.
        """
        if self.problem.initial_params is not None:
            return  # the start may depend on them
        unused = [
            self.names[position] if self.names else f"number {position}"
            for position, parts in enumerate(zip(mixed, direct, strict=True))
            if parts == (None, None)
        ]
        if unused:
            warnings.warn(
                "The hypergradient is zero for hyperparameters that neither "
                "the gradient of the inner objective nor the outer objective "
                f"depends on: {', '.join(unused)}.",
                stacklevel=2,
            )


def refuse_moving_start(
    estimator: Any, problem: BilevelProblem, why: str
) -> None:
    """Refuses problems whose chain starts at a function of hyperparameters."""
    if problem.initial_params is not None:
        raise ValueError(
            f"`{type(estimator).__name__}` cannot serve a problem with "
            f"`initial_params`: {why}. Received: estimator={estimator!r}. Use "
            '"hpo_sgld", "rmd" or "fmd".'
        )
