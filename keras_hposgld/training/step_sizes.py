"""The step sizes of `SGLD("auto")`, renewed while a model is trained.

Every so many inner steps, before a chain begins, the curvature of the loss is
looked at again on its first batch: a direction is kept from time to time, so
that few power iterations follow the largest eigenvalue. The blocks of single
weights are found anew at every fifth time. Where the steps were too large all
the same, `Heat` says so: the learning rate is halved, and all is found anew.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.loop import batch_at
from keras_hposgld.core.vectors import norm
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.estimators import Chain
from keras_hposgld.estimators import curvature
from keras_hposgld.losses.learnable_loss import curvature_from_above
from keras_hposgld.samplers import Sampler
from keras_hposgld.samplers.noise import fold_in
from keras_hposgld.training.heat import Heat
from keras_hposgld.training.outer_level import assign_all
from keras_hposgld.training.placement import Placement
from keras_hposgld.training.weight_copies import places_of
from keras_hposgld.training.weight_copies import WeightCopies

EVERY = 100  # inner steps
BLOCKS_EVERY = 5  # renewals
ROUNDS = 2
FOR_BLOCKS = 6  # power iterations in a round
FOR_ALL = 4
# A direction that has lost its part along the largest eigenvector gets it back.
STIR = 1e-2


class StepSizes(keras.layers.Layer):
    """Finds step sizes, and remembers what it needs to find them again.

    Attributes:
        share: Float, what a `fit` makes of the step sizes: less than 1 where
            its batches are noisy.
        halvings: Variable: how often the learning rate was halved.
        heat: `Heat`.
    """

    def __init__(self) -> None:
        super().__init__(name="step_sizes", trainable=False)
        self.directions = WeightCopies("step_direction")
        self.heat = Heat()
        self.share = 1.0
        self.due = self._counter("due", "int64")
        self.renewals = self._counter("renewals")
        self.halvings = self._counter("halvings")
        self.built = True

    def _counter(self, name: str, dtype: str = "int32") -> keras.Variable:
        return self.add_weight(
            shape=(),
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            name=name,
        )

    def build_for(self, model: keras.Model, sampler: Sampler) -> None:
        """Makes the variables, if the sampler needs them."""
        if not sampler.takes_step_sizes:
            return
        before = len(self.directions.values)
        self.directions.build_for(model.trainable_variables, places_of(model))
        if len(self.directions.values) != before:
            self.due.assign(0)
            self.renewals.assign(0)

    def renew_if_due(
        self,
        sampler: Sampler,
        placement: Placement,
        make_chain: Callable,
        start: Callable,
        inner_batches: Any,
    ) -> None:
        """Assigns step sizes to the sampler's slots, before a chain.

        Args:
            sampler: `Sampler`. Nothing is done for one without step sizes.
            placement: `OneReplica` or `Replicas`.
            make_chain: As in `Replicas.run_chain`.
            start: Likewise.
            inner_batches: Stacked batches of the chain.
        """
        if not sampler.takes_step_sizes:
            return
        iterations = sampler.keras_optimizer().iterations

        def renew() -> None:
            self._renew(sampler, placement, make_chain, start, inner_batches)
            number = tf.cast(iterations, tf.int64)
            # At first, when it changes most, each time that training is
            # twice as long.
            self.due.assign(number + tf.clip_by_value(number, 1, EVERY))
            self.renewals.assign_add(1)

        is_due = tf.cast(iterations, tf.int64) >= self.due.value
        tf.cond(is_due, renew, lambda: None)

    def _renew(
        self,
        sampler: Sampler,
        placement: Placement,
        make_chain: Callable,
        start: Callable,
        inner_batches: Any,
    ) -> None:
        # Replicas can average in no loop of their own.
        in_loop = placement.num_replicas == 1
        seed = fold_in(sampler.chain_seed, self.due.value)

        def chain(batches: Any) -> tuple[Chain, list, Any]:
            return make_chain(placement.average), start(), batch_at(batches, 0)

        def of_blocks(batches: Any, blocks: tf.Tensor) -> tf.Tensor:
            with curvature_from_above():
                return curvature.largest_of_blocks(
                    *chain(batches), blocks, FOR_BLOCKS, seed, in_loop
                )

        def in_one_round(blocks: tf.Tensor, index: Any) -> tf.Tensor:
            return placement.first(
                placement.call(of_blocks, inner_batches, blocks)
            )

        def found(blocks: tf.Tensor) -> tf.Tensor:
            is_new = tf.reduce_any(blocks <= 0)
            blocks = tf.where(is_new, tf.ones_like(blocks), blocks)
            return curvature.repeat(in_one_round, blocks, ROUNDS, in_loop)

        def of_all(batches: Any, blocks: tf.Tensor) -> tuple:
            stirred = self._stirred(seed)
            with curvature_from_above():
                return curvature.largest_eigenvalue(
                    *chain(batches), blocks, stirred, FOR_ALL, in_loop
                )

        slots = sampler.state_variables["step_size"]
        before = _blocks_of(slots)
        blocks = tf.cond(
            self.renewals.value % BLOCKS_EVERY == 0,
            lambda: found(before),
            lambda: before,
        )
        rho, direction = tf.nest.map_structure(
            placement.first, placement.call(of_all, inner_batches, blocks)
        )
        assign_all(self.directions.values, direction)
        sizes = self.share * curvature.step_sizes(blocks, rho)
        assign_all(slots, tf.unstack(sizes))

    def _stirred(self, seed: tf.Tensor) -> list:
        """The direction kept, and a little of a random one."""
        kept = [tf.convert_to_tensor(v) for v in self.directions.values]
        random = curvature.random_direction(kept, seed)
        return plus_scaled(kept, STIR / norm(random), random)

    def judged(self, estimate: Any, sampler: Sampler) -> Any:
        """The estimate, with an infinite loss if the chain has diverged."""
        if estimate.inner_range is None:
            return estimate
        return self.heat.judged(estimate, sampler.law_temperature or 0.0)

    def see(self, estimate: Any, skipped: tf.Tensor, sampler: Sampler) -> None:
        """Takes notice of a chain; halves the learning rate if it was hot.

        Args:
            estimate: `Estimate`. One without `equipartition` says nothing.
            skipped: 1 if its update was skipped, else 0.
            sampler: `Sampler`. One without step sizes keeps its learning rate.
        """
        if estimate.equipartition is None:
            return
        is_hot = self.heat.see(estimate, skipped)
        if not sampler.takes_step_sizes:
            return
        rate = sampler.keras_optimizer().learning_rate

        def halve() -> None:
            rate.assign(0.5 * rate)
            for velocity in sampler.state_variables.get("velocity", []):
                velocity.assign(tf.zeros_like(velocity.value))
            self.due.assign(0)
            self.renewals.assign(0)
            self.halvings.assign_add(1)
            self.heat.begin_anew()

        tf.cond(is_hot, halve, lambda: None)


def _blocks_of(slots: list) -> tf.Tensor:
    """D as it was, up to a factor, from the step sizes 1 / (D rho)."""
    sizes = tf.stack([tf.cast(slot.value, tf.float32) for slot in slots])
    return tf.math.reciprocal_no_nan(sizes)
