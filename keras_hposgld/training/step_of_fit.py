"""Keras's own training step, seen so that it can be differentiated.

A model's `train_step` takes a gradient and hands it to `optimizer.apply`. For
the time of a `fit` a function of ours stands there: it writes the gradient
down, adds what a learned weight decay takes off the weights, and calls Keras's.
Nothing that Keras computes is written again here, so the weights are those of
a `fit` without it, to the last bit.
"""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_hposgld.core.missing_derivatives import missing_explained
from keras_hposgld.core.second_derivatives import differentiable_twice
from keras_hposgld.training.decay_of_fit import is_step
from keras_hposgld.training.decay_of_fit import plain
from keras_hposgld.training.decay_of_fit import take_off
from keras_hposgld.training.placement import Placement


class TakenStep(NamedTuple):
    """A step that Keras has taken.

    Attributes:
        logs: What `train_step` returned.
        gradient: List of tensors, one for each trainable weight: what the
            weights follow, of one replica, not clipped.
        pullback: Function from a list of tensors like the gradient to its
            product with the derivatives by the sources of the batch's own
            gradient. (Of those that are accumulated with it, that of a penalty
            is the same.)
        unprojected: List like the weights: each before its constraint was
            applied, `()` where it has none; empty if none has.
        is_taken: Boolean tensor, or `True`: whether the weights have moved.
    """

    logs: Any
    gradient: list
    pullback: Callable
    unprojected: list
    is_taken: Any


class StepOfFit:
    """Takes the training steps of a model by Keras's own `train_step`.

    Args:
        model: Compiled and built `keras.Model`.
        placement: `OneReplica` or `Replicas`.
        decay: Function from the weights to what the next step takes off each
            of them beside the gradient, a list with `None` for nothing; `None`
            if no weight decays.
        through_layers: Whether derivatives by the hyperparameters go through
            the layers of the model. Some of TensorFlow's functions are then
            replaced, which changes the rounding in eager mode.
    """

    def __init__(
        self,
        model: keras.Model,
        placement: Placement,
        decay: Callable | None = None,
        through_layers: bool = True,
    ):
        self.weights = model.trainable_variables
        self.optimizer = model.optimizer
        self.placement = placement
        self.decay = decay
        self.through_layers = through_layers
        # Each replica is traced in a thread of its own, and they take turns.
        self._here = threading.local()
        self._constraints = {
            id(weight): _Seen(weight, self._here)
            for weight in self.weights
            if weight.constraint is not None
        }

    def install(self) -> None:
        """Puts itself between Keras's step and the optimizer."""
        self._apply = self.optimizer.apply
        # Not by `setattr`, which Keras would track.
        vars(self.optimizer)["apply"] = self._see
        for weight in self.weights:
            if id(weight) in self._constraints:
                weight.constraint = self._constraints[id(weight)]

    def remove(self) -> None:
        """Leaves the optimizer and the weights as they were."""
        del vars(self.optimizer)["apply"]
        for weight in self.weights:
            if id(weight) in self._constraints:
                weight.constraint = self._constraints[id(weight)].constraint

    def take(self, train_step: Callable, data: Any, sources: list) -> TakenStep:
        """Takes one step.

        Args:
            train_step: Keras's.
            data: A batch, as `train_step` takes it.
            sources: List of variables to differentiate the gradient by.

        Raises:
            ValueError: If the step did not hand one gradient to the optimizer.
        """
        here = self._here
        scale = _loss_scale(self.optimizer)
        own = {id(weight) for weight in self.weights}
        through_layers = self.through_layers or any(
            id(source) in own for source in sources
        )
        with tf.GradientTape(
            persistent=True, watch_accessed_variables=False
        ) as here.tape:
            here.tape.watch([source.value for source in sources])
            here.seen, here.unprojected = [], {}
            with differentiable_twice() if through_layers else nullcontext():
                logs = train_step(data)
        tape, here.tape = here.tape, None
        if len(here.seen) != 1:
            raise ValueError(
                "A training step must hand a gradient to the optimizer once, "
                "where it is a step of a chain. Received: a `train_step` that "
                f"called `optimizer.apply` {len(here.seen)} times. Use "
                '`chain="apart"`.'
            )
        ((scaled, gradient, is_taken),) = here.seen

        def pullback(vector: list) -> list:
            with missing_explained():
                products = tape.gradient(
                    scaled,
                    [source.value for source in sources],
                    output_gradients=vector,
                )
            return [
                p if p is None else _over(tf.convert_to_tensor(p), scale)
                for p in products
            ]

        unprojected = [
            here.unprojected.get(id(weight), ()) for weight in self.weights
        ]
        return TakenStep(
            logs,
            gradient,
            pullback,
            unprojected if self._constraints else [],
            is_taken,
        )

    def _see(self, grads: Any, trainable_variables: Any = None) -> None:
        """Stands in the place of `optimizer.apply`."""
        here = self._here
        if getattr(here, "tape", None) is None:  # not a step of this `fit`
            self._apply(grads, trainable_variables)
            return
        given = {
            id(variable): gradient
            for variable, gradient in zip(
                trainable_variables or self.weights, grads, strict=True
            )
        }
        scaled = [_dense(given.get(id(w)), w) for w in self.weights]
        with here.tape.stop_recording():
            gradient, is_taken = self._followed(scaled)
            here.seen.append((scaled, gradient, is_taken))
            if self.decay is not None:
                amounts = self.decay([w.value for w in self.weights])
                take_off(self.weights, amounts, is_taken, self.placement)
            self._apply(grads, trainable_variables)

    def _followed(self, scaled: list) -> tuple[list, Any]:
        """The gradient that the weights follow now, and whether they do.

        A gradient that has overflowed in float16 is left out; one that is
        accumulated is followed together with those before.
        """
        optimizer, scale = plain(self.optimizer), _loss_scale(self.optimizer)
        gradient = [_over(tensor, scale) for tensor in scaled]
        is_taken = is_step(self.optimizer, scaled, self.placement)
        number = optimizer.gradient_accumulation_steps
        if number:
            # Private to Keras: their sum since the last step.
            gradient = [
                (g + total.value) / number
                for g, total in zip(
                    gradient, optimizer._accumulated_gradients, strict=True
                )
            ]
        return gradient, is_taken


class _Seen(keras.constraints.Constraint):
    """A weight's constraint that writes down what it is applied to."""

    def __init__(self, weight: keras.Variable, here: threading.local):
        self.constraint = weight.constraint
        self._place = id(weight)
        self._here = here

    def __call__(self, w: Any) -> Any:
        if hasattr(self._here, "unprojected"):
            self._here.unprojected[self._place] = tf.convert_to_tensor(w)
        return self.constraint(w)

    def get_config(self) -> dict:
        return self.constraint.get_config()


def _loss_scale(optimizer: keras.optimizers.Optimizer) -> Any:
    """What the loss of the next step is multiplied by; `None` for 1."""
    if plain(optimizer) is not optimizer:
        return tf.convert_to_tensor(optimizer.dynamic_scale.value)
    return optimizer.loss_scale_factor


def _over(tensor: tf.Tensor, scale: Any) -> tf.Tensor:
    return tensor if scale is None else tensor / tf.cast(scale, tensor.dtype)


def _dense(gradient: Any, weight: keras.Variable) -> tf.Tensor:
    if gradient is None:
        return tf.zeros_like(weight.value)
    return tf.convert_to_tensor(gradient)
