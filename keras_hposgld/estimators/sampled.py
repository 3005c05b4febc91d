"""The chain of an estimator that samples: burn-in, losses, errors, means.

What is the same in all of them stands here, so that their own modules hold
their equations and nothing else. A step of the chain

1. differentiates the inner objective and moves the weights;
2. differentiates the outer objective, at each step or every few, if the
   estimator needs it;
3. asks the estimator for what the step contributes (`contribute`);
4. adds that to h, and to the statistics of its error.

With N steps, of which the last M are samples, h is a weighted sum of what the
steps contribute: `h = sum_m s_m df/dlambda - w_m x_m`, with s_m = 1/M for a
sample. `weights` says what w_m is.
"""

import abc
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.derivatives import LinearizedGradient
from keras_hposgld.core.vectors import component_along
from keras_hposgld.core.vectors import Multiple
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import with_zeros
from keras_hposgld.core.vectors import zeros_like
from keras_hposgld.estimators.batch_means import BatchMeans
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.losses import Losses
from keras_hposgld.estimators.position import OuterGradient
from keras_hposgld.estimators.position import Position
from keras_hposgld.estimators.step import Step


class SampledState(NamedTuple):
    """What the next step needs."""

    position: Position
    own: Any  # the estimator's own vectors
    h: list  # M times the hypergradient, as far as it is known by now
    outer: Any  # f and its derivatives, where they are not renewed each step
    losses: Losses
    error: BatchMeans


class SampledEstimator(HypergradientEstimator):
    """An estimator that averages over the steps after a burn-in.

    Attributes:
        burn_in: Integer, steps that are not samples.
        num_samples: Integer, M.
        outer_every: Integer: the outer gradient is renewed every so many
            steps, and reused in between.
        copies: Pair of integers, see `copies_in_chain`.
        outer_at_end_of_step: Whether it is taken at theta^m, where a step
            ends, or at theta^{m-1}, where the inner one is. Defaults to
            `False`.
    """

    serves_replicas = True
    takes_single_steps = True
    copies: tuple[int, int]
    outer_at_end_of_step = False
    outer_every = 1

    def _set_lengths(
        self,
        burn_in: int,
        num_samples: int,
        outer_every: int = 1,
        fewest: int = 1,
    ) -> None:
        self.burn_in = check_count("burn_in", burn_in, 0)
        self.num_samples = check_count("num_samples", num_samples, fewest)
        self.outer_every = check_count("outer_every", outer_every, 1)
        self.num_steps = self.burn_in + self.num_samples

    # What an estimator defines.

    @abc.abstractmethod
    def begin(self, chain: Chain, params: list) -> Any:
        """The estimator's own vectors before the first step."""

    @abc.abstractmethod
    def contribute(self, chain: Chain, own: Any, step: Step) -> tuple:
        """What a step contributes.

        Returns:
            The own vectors after the step; x_m, which is subtracted, a list
            like the hyperparameters, with `None` where there is no dependence,
            or a `Multiple` of one.
        """

    def sources(self, chain: Chain, own: Any, position: Position) -> list:
        """By what the gradient of the inner objective is differentiated."""
        return list(chain.hyperparameters)

    def differentiate(
        self, chain: Chain, own: Any, position: Position, batch: Any
    ) -> LinearizedGradient:
        """The inner objective with its derivatives at a position."""
        return chain.linearize(
            position, batch, self.sources(chain, own, position)
        )

    def weights(self) -> np.ndarray:
        """M times w_m: how often what each step contributes is counted."""
        return self._is_sample.astype(int)

    def conclude(self, chain: Chain, state: SampledState) -> dict:
        """Fields of the estimate that the estimator computes by itself."""
        return {}

    # The chain.

    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        """See `HypergradientEstimator`; an older v is kept beside."""
        weights, hyperparameters = self.copies
        return weights + (self.outer_every > 1), hyperparameters

    def init(self, chain: Chain, params: list) -> SampledState:
        """The state before the first step."""
        dtype = params[0].dtype
        zero = tf.zeros([], dtype)
        outer: Any = ()
        if self.outer_every > 1:
            outer = OuterGradient(
                zero * np.nan,  # none was taken yet
                zeros_like(chain.hyperparameters),
                zeros_like(params),
            )
        return SampledState(
            position=chain.begin(params),
            own=self.begin(chain, params),
            h=zeros_like(chain.hyperparameters),
            outer=outer,
            losses=Losses.zero(self.num_samples, self.needs_outer, dtype),
            error=BatchMeans.zero(
                self.num_steps - self._first_contribution,
                chain.hyperparameters[0].dtype,
            ),
        )

    def step(
        self,
        chain: Chain,
        state: SampledState,
        index: Any,
        inner_batch: Any,
        outer_batch: Any,
    ) -> SampledState:
        """The state after inner step number `index`."""
        before = state.position
        inner = self.differentiate(chain, state.own, before, inner_batch)
        after = chain.move(before, inner, index)
        at = after if self.outer_at_end_of_step else before
        outer, kept = self._outer(
            chain, at.params, inner.carry, outer_batch, state.outer, index
        )
        (f, value), direct, v = chain.mean(
            [outer.value, inner.value], outer.direct, outer.v
        )
        outer = OuterGradient(f, direct, v)
        own, x = self.contribute(
            chain,
            state.own,
            Step(
                index,
                before,
                after,
                inner._replace(value=value),
                outer,
                chain.scales(after.sampler_state, index),
                inner_batch,
                outer_batch,
            ),
        )
        number, x = x if isinstance(x, Multiple) else Multiple(1.0, x)
        chain.report_unused(x, outer.direct)

        weight = tf.gather(self.weights(), index)
        is_sample = tf.cast(index >= self.burn_in, weight.dtype)
        number = tf.cast(number, state.h[0].dtype)
        h = plus_scaled(state.h, -number * tf.cast(weight, number.dtype), x)
        h = plus_scaled(h, is_sample, outer.direct)
        first = self._first_contribution
        return SampledState(
            after,
            own,
            h,
            kept,
            state.losses.add(value, outer.value, index - self.burn_in),
            state.error.add(
                (
                    number * component_along(h, x),
                    component_along(h, outer.direct),
                ),
                (-weight, is_sample),
                (index == first, index == self.burn_in),
                index - first,
                self.num_steps - first,
            ),
        )

    def finish(
        self,
        chain: Chain,
        state: SampledState,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Estimate:
        """The estimate, from the state after the last step."""
        number, first = self.num_samples, self._first_contribution
        weights = np.stack([-self.weights(), self._is_sample], axis=1)[first:]
        fields = {
            "hypergradient": [total / number for total in state.h],
            "params": state.position.params,
            "standard_error": state.error.standard_error(weights, number),
            "carry": state.position.carry,
            "sampler_state": state.position.sampler_state,
        }
        fields |= state.losses.fields(number)
        return Estimate(**fields | self.conclude(chain, state))

    @property
    def _is_sample(self) -> np.ndarray:
        return np.arange(self.num_steps) >= self.burn_in

    @property
    def _first_contribution(self) -> int:
        """The first step that has a weight."""
        return int(np.argmax(self.weights() > 0))

    def _outer(
        self,
        chain: Chain,
        params: list,
        carry: Any,
        batch: Any,
        last: Any,
        index: Any,
    ) -> tuple[OuterGradient, Any]:
        """One replica's outer gradient, and what to keep for the next step.

        It is renewed where there is none, which the value says, and at every
        `outer_every`-th step counted from the last. That saves up to half of
        the gradients of a step, and costs one more vector of the size of the
        weights.
        """
        hypers = list(chain.hyperparameters)
        if not self.needs_outer:
            return OuterGradient(None, [None] * len(hypers), []), ()
        if self.outer_every == 1:
            return chain.outer(params, carry, batch), ()
        depends = [True] * len(hypers)

        def renew() -> OuterGradient:
            now = chain.outer(params, carry, batch)
            depends[:] = [gradient is not None for gradient in now.direct]
            return now._replace(
                value=tf.cast(now.value, last.value.dtype),
                direct=with_zeros(now.direct, hypers),
            )

        from_end = self.num_steps - 1 - index
        is_due = from_end % self.outer_every == 0
        is_due |= tf.math.is_nan(last.value)
        now = tf.cond(is_due, renew, lambda: last)
        shown = [
            gradient if known else None
            for gradient, known in zip(now.direct, depends, strict=True)
        ]
        return now._replace(direct=shown), now
