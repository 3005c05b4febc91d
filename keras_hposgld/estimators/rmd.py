"""Reverse-mode differentiation through the inner steps.

The weights of the last K steps are kept and the chain is walked back from its
end, with the adjoints a of theta, b of the negative velocity -M and e of what
is carried beside the weights, c. From a = df/dtheta at the last weights, b = 0
and e = df/dc, each step takes

    a <- a . dP/dtheta
    b <- b + B a
    h <- h - (A b + E a) . C - a . dD/dlambda + e . dc/dlambda
    e, a <- e . dc/dc - (A b + E a) . dG/dc,
            a - (A b + E a) . H - a . dD/dtheta + e . dc/dtheta
    b <- mu b

with the scales of that step, G the gradient of the inner objective and P the
projection that ends the step (without any of these but SGLD's A B = alpha,
h <- h - alpha a . C and a <- a - alpha a . H). Exact for K = `num_steps`; its
memory grows with K.
"""

from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.derivatives import vector_jacobian_product
from keras_hposgld.core.loop import batch_at
from keras_hposgld.core.vectors import add
from keras_hposgld.core.vectors import pack
from keras_hposgld.core.vectors import plus
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import scaled
from keras_hposgld.core.vectors import unpack
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators import carried
from keras_hposgld.estimators import descent
from keras_hposgld.estimators import share_seen
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.registry import register


class Path(NamedTuple):
    """The chain, and what it went through."""

    now: descent.DescentState
    kept: Any  # of TensorArrays


class Adjoints(NamedTuple):
    """What is carried back along the path."""

    path: Path
    outer_loss: tf.Tensor
    direct: list  # df/dlambda, packed
    a: list
    b: list  # empty without momentum
    e: list  # of what is carried, of each replica its own
    h: list


@register("rmd")
class RMD(HypergradientEstimator):
    """Differentiation of the unrolled chain, backward.

    Args:
        truncation: Integer `>= 1`: how many of the last steps to walk back.
            `None` (default): all of them, which is exact. With fewer, the
            dependence of the chain's start is left out.
        num_steps: Integer `>= 1`, inner steps. Defaults to `20`.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        Franceschi, Donini, Frasconi and Pontil, ICML 2017.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.RMD(num_steps=50, truncation=10)
    ```
    """

    serves_replicas = True

    def __init__(self, truncation: int | None = None, num_steps: int = 20):
        self.num_steps = check_count("num_steps", num_steps, 1)
        self.truncation = truncation
        if truncation is not None:
            self.truncation = check_count("truncation", truncation, 1)
            if self.truncation > self.num_steps:
                raise ValueError(
                    "`truncation` must be at most `num_steps`. Received: "
                    f"truncation={truncation}, num_steps={num_steps}."
                )
        self.num_closing_steps = self.truncation or self.num_steps

    def init(self, chain: Chain, params: list) -> Path:
        now = descent.start(chain, params)
        kept = tf.nest.map_structure(
            lambda x: tf.TensorArray(
                x.dtype,
                size=self.num_closing_steps,
                element_shape=x.shape,
                clear_after_read=False,
            ),
            _to_keep(chain, now.position, now.position),
        )
        return Path(now, kept)

    def step(
        self,
        chain: Chain,
        state: Path,
        index: Any,
        inner_batch: Any,
        outer_batch: Any,
    ) -> Path:
        before = state.now.position
        now = descent.descend(chain, state.now, index, inner_batch)
        # Steps before the last K overwrite one another in the first place.
        place = tf.maximum(index - (self.num_steps - self.num_closing_steps), 0)
        kept = tf.nest.map_structure(
            lambda array, x: array.write(place, x),
            state.kept,
            _to_keep(chain, before, now.position),
        )
        return Path(now, kept)

    def share_seen(self, rate: tf.Tensor, momentum: float) -> tf.Tensor:
        return share_seen.after(self.num_closing_steps, rate)

    def turn(
        self, chain: Chain, state: Path, inner_batches: Any, outer_batches: Any
    ) -> Adjoints:
        outer = descent.outer_at_end(
            chain, state.now.position, outer_batches, self.num_steps, True
        )
        return Adjoints(
            state,
            outer.value,
            pack(outer.direct),
            a=outer.v,
            b=zeros_like(outer.v) if chain.sampler.momentum else [],
            e=outer.by_carry,
            h=with_zeros(outer.direct, chain.hyperparameters),
        )

    def close(
        self,
        chain: Chain,
        state: Adjoints,
        number: Any,
        inner_batches: Any,
        _: Any,
    ) -> Adjoints:
        index = self.num_steps - 1 - number
        place = self.num_closing_steps - 1 - number
        params, carry, slots, unprojected = tf.nest.map_structure(
            lambda array: array.read(place), state.path.kept
        )
        by_carry, carry = carried.sources(chain.problem, carry)
        position = Position(params, carry, None)
        last = state.path.now.position.sampler_state
        scales = chain.scales(last | slots, index)
        hypers = list(chain.hyperparameters)
        inner = chain.linearize(
            position,
            batch_at(inner_batches, index),
            [*hypers, *params, *by_carry],
            through_carry=True,
        )
        a = chain.pulled(state.a, unprojected)
        b = scales.velocity(a)
        if state.b:
            b = plus(state.b, b)
        force = scales.force(b)
        direct = scales.direct(a)
        if direct is not None:
            force = plus(force, direct)
        products = chain.products(inner, force, scaled(-1.0, state.e))
        number = len(products) - len(by_carry)
        by_carry = plus_scaled(zeros_like(by_carry), -1.0, products[number:])
        by_lambda, by_theta = chain.decay_products(params, a, scales)
        chain.report_unused(
            add(products[: len(hypers)], by_lambda), unpack(state.direct)
        )
        h = plus_scaled(state.h, -1.0, products[: len(hypers)])
        a = plus_scaled(a, -1.0, products[len(hypers) : number])
        return state._replace(
            a=plus_scaled(a, -1.0, by_theta),
            b=scaled(chain.sampler.momentum, b) if state.b else [],
            e=by_carry,
            h=plus_scaled(h, -1.0, by_lambda),
        )

    def finish(
        self,
        chain: Chain,
        state: Adjoints,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Estimate:
        h, now = state.h, state.path.now
        start = chain.problem.initial_params
        if start is not None and self.num_closing_steps == self.num_steps:
            through_start = vector_jacobian_product(
                start, list(chain.hyperparameters), state.a
            )
            h = plus(h, through_start)
        return Estimate(
            hypergradient=h,
            **descent.fields_of(now, state.outer_loss),
        )

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        # The path; at its end the adjoint, a gradient and H times it.
        return self.num_closing_steps + 4, 2


def _to_keep(chain: Chain, before: Position, after: Position) -> tuple:
    """What a step back needs: where the step began, its scales, its end."""
    slots = after.sampler_state
    names = chain.sampler.scale_slots
    if names is not None:
        slots = {name: slots[name] for name in names}
    return before.params, before.carry, slots, after.unprojected


@register("rmd_fo")
class RMDFO(RMD):
    """Reverse-mode differentiation of the last step alone.

    Args:
        num_steps: Integer `>= 1`, inner steps. Defaults to `20`.

    Raises:
        ValueError: If `num_steps` is out of range.

    Reference:
        Luketina, Berglund, Greff and Raiko, ICML 2016.

    Example:

    ```python
    import keras_hposgld as hs

    estimator = hs.estimators.RMDFO(num_steps=50)
    ```
    """

    def __init__(self, num_steps: int = 20):
        super().__init__(truncation=1, num_steps=num_steps)
