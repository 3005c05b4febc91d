"""Forward-mode differentiation through the inner steps.

Carries the Jacobians Z = dtheta/dlambda and U = dM/dlambda along the chain,

    G = H Z + C
    U <- mu U + A G
    Z <- P' (Z - B U - E G - dD/dtheta Z - dD/dlambda)

with P the projection that ends a step (for SGLD without one or momentum
Z <- Z - alpha (H Z + C)), one direction of lambda after the other: exact, but
its time and memory grow with the number of hyperparameters. What is carried
beside the weights has a Jacobian Y of its own, which enters G.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.derivatives import directional_derivative
from keras_hposgld.core.loop import batch_at
from keras_hposgld.core.loop import variable_scope_kept
from keras_hposgld.core.projection import push_forward
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import times_rows
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.estimators import carried
from keras_hposgld.estimators import descent
from keras_hposgld.estimators import share_seen
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.registry import register


class FMDState(NamedTuple):
    """The chain, and its Jacobians with one row per hyperparameter."""

    now: descent.DescentState
    z: list
    u: list  # empty without momentum
    y: list  # of what is carried, of each replica its own


@register("fmd")
class FMD(HypergradientEstimator):
    """Differentiation of the unrolled chain, forward.

    Args:
        num_steps: Integer `>= 1`, inner steps. Defaults to `20`.
        max_hyperparameters: Integer `>= 1`: more are refused. Defaults to
            `1000`.

    Raises:
        ValueError: If a number is out of range, or if there are more
            hyperparameters than `max_hyperparameters`, or if layers of the
            model average over several replicas.

    Reference:
        Franceschi, Donini, Frasconi and Pontil, ICML 2017.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.FMD(num_steps=50)
    ```
    """

    # Its loop over the directions is one of each replica; the mean of what
    # they give is taken outside of it.
    serves_replicas = True

    def __init__(self, num_steps: int = 20, max_hyperparameters: int = 1000):
        self.num_steps = check_count("num_steps", num_steps, 1)
        self.max_hyperparameters = check_count(
            "max_hyperparameters", max_hyperparameters, 1
        )

    def init(self, chain: Chain, params: list) -> FMDState:
        hypers = list(chain.hyperparameters)
        number = sum(tensor.shape.num_elements() for tensor in hypers)
        if number > self.max_hyperparameters:
            size = sum(x.shape.num_elements() * x.dtype.size for x in params)
            raise ValueError(
                "`FMD` carries a copy of the weights for each hyperparameter. "
                f"Received: {number} hyperparameters, which would take "
                f"{number * size / 2**30:.3g} GiB, and max_hyperparameters="
                f'{self.max_hyperparameters}. Use "hpo_sgld" or "rmd", or '
                "raise `max_hyperparameters`."
            )
        zero = [tf.zeros([number, *x.shape], x.dtype) for x in params]
        z = zero
        if chain.problem.initial_params is not None:
            z = _by_direction(
                hypers,
                lambda direction, row: directional_derivative(
                    chain.problem.initial_params, hypers, direction
                ),
                params,
            )
        u = zero if chain.sampler.momentum else []
        now = descent.start(chain, params)
        y = [
            tf.zeros([number, *x.shape], x.dtype)
            for x in carried.floats(chain.problem, now.position.carry)
        ]
        return FMDState(now, z, u, y)

    def step(
        self,
        chain: Chain,
        state: FMDState,
        index: Any,
        inner_batch: Any,
        outer_batch: Any,
    ) -> FMDState:
        hypers, before = list(chain.hyperparameters), state.now.position
        params = before.params
        inner = chain.linearize(before, inner_batch, [])
        now = descent.follow(chain, state.now, inner, index)
        scales = chain.scales(now.position.sampler_state, index)
        g, decay, y = self._rows(chain, state, before, inner_batch)
        g = self._through_clipping(chain, inner.gradient, g, hypers)
        u = scales.force(g)
        if state.u:
            u = plus_scaled(u, chain.sampler.momentum, state.u)
        z = plus_scaled(state.z, -1.0, scales.velocity(u))
        direct = scales.direct(g)
        if direct is not None:
            z = plus_scaled(z, -1.0, direct)
        z = plus_scaled(z, -1.0, scales.decayed(decay))
        unprojected = now.position.unprojected
        if unprojected:
            z = _by_direction(
                hypers,
                lambda direction, row: push_forward(
                    chain.problem.project,
                    unprojected,
                    [part[row] for part in z],
                ),
                params,
            )
        return FMDState(now, z, u if state.u else [], y)

    def _rows(
        self, chain: Chain, state: FMDState, before: Position, batch: Any
    ) -> tuple[list, list, list]:
        """Derivatives of gradient, decay and carry, one row a direction."""
        hypers, params = list(chain.hyperparameters), before.params
        by_carry, carry = carried.sources(chain.problem, before.carry)
        decay = chain.decay(hypers, params)  # empty where nothing decays
        decaying = [n for n, part in enumerate(decay) if part is not None]
        sizes = [len(hypers), len(params), len(by_carry)]

        def outputs(inputs: list) -> list:
            lambdas, thetas, by_carry = _split(inputs, sizes)
            moved = chain._replace(
                hyperparameters=lambdas, average=lambda tensors: tensors
            )
            at = Position(
                thetas,
                carried.with_floats(chain.problem, carry, by_carry),
                None,
            )
            inner = moved.linearize(at, batch, [])
            decay = chain.decay(lambdas, thetas)
            after = carried.floats(chain.problem, inner.carry)
            return [*inner.gradient, *after, *[decay[n] for n in decaying]]

        rows = _by_direction(
            hypers,
            lambda direction, row: directional_derivative(
                outputs,
                [*hypers, *params, *by_carry],
                [*direction, *[part[row] for part in (*state.z, *state.y)]],
            ),
            [*params, *by_carry, *[params[n] for n in decaying]],
        )
        g, y, found = _split(rows, [len(params), len(by_carry), len(decaying)])
        decay = [None] * len(params)
        for n, part in zip(decaying, found, strict=True):
            decay[n] = part
        return chain.mean(g), decay, y

    def _through_clipping(
        self, chain: Chain, gradient: list, rows: list, hypers: list
    ) -> list:
        """The derivative of clipping times each of the rows."""
        clipped = chain.sampler.clip(list(gradient))
        if all(a is b for a, b in zip(clipped, gradient, strict=True)):
            return rows
        return _by_direction(
            hypers,
            lambda direction, row: directional_derivative(
                chain.sampler.clip, gradient, [part[row] for part in rows]
            ),
            gradient,
        )

    def share_seen(self, rate: tf.Tensor, momentum: float) -> tf.Tensor:
        return share_seen.after(self.num_steps, rate)

    def finish(
        self,
        chain: Chain,
        state: FMDState,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Estimate:
        hypers, position = list(chain.hyperparameters), state.now.position
        outer = descent.outer_at_end(
            chain, position, outer_batches, self.num_steps, True
        )
        # What the directions do not tell: whether there is any dependence.
        inner = chain.linearize(
            position, batch_at(inner_batches, self.num_steps - 1), hypers
        )
        scales = chain.scales(position.sampler_state, self.num_steps - 1)
        by_lambda, _ = chain.decay_products(position.params, outer.v, scales)
        dependence = [
            a if b is None else b
            for a, b in zip(inner.pullback(outer.v), by_lambda, strict=True)
        ]
        chain.report_unused(dependence, outer.direct)
        total = times_rows(state.z, outer.v)
        if state.y:
            (by_carry,) = chain.mean([times_rows(state.y, outer.by_carry)])
            total += tf.cast(by_carry, total.dtype)
        parts = tf.split(total, [x.shape.num_elements() for x in hypers])
        indirect = [
            tf.cast(tf.reshape(part, tensor.shape), tensor.dtype)
            for part, tensor in zip(parts, hypers, strict=True)
        ]
        return Estimate(
            hypergradient=plus(with_zeros(indirect, hypers), outer.direct),
            **descent.fields_of(state.now, outer.value),
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        return 3 + 2 * num_hyperparameters, 2


def _split(parts: list, sizes: list) -> list:
    """A list in consecutive parts of some lengths."""
    rest = iter(parts)
    return [[next(rest) for _ in range(size)] for size in sizes]


def _by_direction(hypers: list, function: Callable, like: list) -> list:
    """Stacks `function(unit direction, its number)` over all directions.

    Args:
        hypers: List of tensors, whose entries are the directions.
        function: Function to a list of tensors.
        like: List of tensors, shaped like what the function returns.
    """
    sizes = [tensor.shape.num_elements() for tensor in hypers]

    # In eager mode `tf.map_fn` would rewrite the user's objective.
    @tf.autograph.experimental.do_not_convert
    def one(row: tf.Tensor) -> list:
        unit = tf.split(tf.one_hot(row, sum(sizes), dtype="float64"), sizes)
        direction = [
            tf.cast(tf.reshape(part, tensor.shape), tensor.dtype)
            for part, tensor in zip(unit, hypers, strict=True)
        ]
        return function(direction, row)

    signature = [tf.TensorSpec(x.shape, x.dtype) for x in like]
    try:
        with variable_scope_kept():
            return tf.map_fn(
                one,
                tf.range(sum(sizes)),
                fn_output_signature=signature,
                parallel_iterations=1,
            )
    except RuntimeError as error:
        # How TensorFlow names an average within a loop of a replica.
        if "merge_call" not in str(error):
            raise
        raise ValueError(
            "`FMD` cannot serve an objective that averages over the replicas, "
            "such as one with `BatchNormalization(synchronized=True)`: its "
            "loop over the hyperparameters is one of each replica, and in the "
            "middle of such a loop TensorFlow cannot average. Received: "
            f"{tf.distribute.get_strategy().num_replicas_in_sync} replicas. "
            'Use "rmd", which returns the same, or `synchronized=False`.'
        ) from error
