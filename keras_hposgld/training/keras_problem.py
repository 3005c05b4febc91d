"""A compiled Keras model, seen as a bilevel problem over flat lists.

`keras.StatelessScope` turns the model into a pure function of its weights, its
hyperparameters and its other state. How that other state is treated is a
policy with a name:

* `"carried"`: the inner objective runs the model in training mode. What it
  updates (moving statistics of batch normalization, counters of dropout's
  random generators, metrics) goes from inner step to inner step, and into the
  model when the chain has ended. The outer objective runs the model in
  inference mode, with the statistics carried so far, and updates nothing.
* `"frozen"`: both objectives run the model in inference mode. Moving
  statistics stay as they are and dropout is off; only metrics are carried.

What Keras's optimizers do to weights beside the step is done here, too: after
each step a weight with a constraint is put where the constraint says.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.gauss_newton import mark_predictions
from keras_hposgld.core.problem import BilevelProblem
from keras_hposgld.data.padding import unpadded
from keras_hposgld.hyperparameters.addresses import all_layers
from keras_hposgld.hyperparameters.discovery import not_owned
from keras_hposgld.hyperparameters.discovery import priors_of
from keras_hposgld.samplers.exponential import of_weight as curvature_of
from keras_hposgld.training.overrides import compute_loss
from keras_hposgld.training.placement.on_replica import local_loss
from keras_hposgld.training.state import random_states

LAYER_STATES = ("carried", "frozen")

# A float16 below 6e-8 is zero: gradients of activations would be lost. This
# leaves a factor of 64 up to the largest float16 for those of order one.
FLOAT16_LOSS_SCALE = 1024.0


class KerasProblem(BilevelProblem):
    """The bilevel problem of a compiled model.

    Its lists are ordered like `weights` and `hyperparameters` below.

    Args:
        trainer: A built and compiled `keras.Model`. Its `compute_loss`, the
            regularization included, is the inner objective.
        hyperparameters: List of `keras.Variable`s, unconstrained.
        layer_variables: List of `keras.Variable`s: the other state of the
            model's layers, see `layer_variables`.
        outer_loss: Function `(y, y_pred, sample_weight)` to a scalar.
        layer_state: `"carried"` or `"frozen"`, see the module's text.
        tracks_metrics: Whether the metrics of `trainer` follow the inner
            steps.
        weigh: Function from the targets, predictions and third entry of an
            inner batch to what its loss takes. Defaults to the identity.
    """

    def __init__(
        self,
        trainer: keras.Model,
        hyperparameters: list[keras.Variable],
        layer_variables: list[keras.Variable],
        outer_loss: Callable,
        layer_state: str = "carried",
        tracks_metrics: bool = True,
        weigh: Callable = lambda *batch: batch,
    ):
        self.trainer = trainer
        self.weights = trainer.trainable_variables
        self.hyperparameters = hyperparameters
        self.outer_loss = outer_loss
        self.weigh = weigh
        self.training = layer_state == "carried"
        self.layer_variables = layer_variables
        self.tracks_metrics = tracks_metrics
        self.metrics_variables = (
            trainer.metrics_variables if tracks_metrics else []
        )
        is_constrained = any(w.constraint is not None for w in self.weights)
        super().__init__(
            self._inner,
            self._outer,
            initial_carry=(),  # see the property
            decay=self._decay if any(_decays(self.weights)) else None,
            project=self._project if is_constrained else None,
            log_normalizer=self._log_normalizer,
            curvature=self._curvature,
        )
        _refuse_overwriting(self.weights)
        layers = all_layers(trainer)
        if any(layer.compute_dtype == "float16" for layer in layers):
            self.loss_scale = FLOAT16_LOSS_SCALE

    @property
    def initial_carry(self) -> tuple[list, list]:
        """The state that layers and metrics have when a chain begins."""
        return tensors(self.layer_variables), tensors(self.metrics_variables)

    def passes_derivatives(self, carry: tuple[list, list]) -> list[bool]:
        """What layers carry; no objective depends on metrics."""
        layer_state, metrics_state = carry
        return [
            *(self.training and x.dtype.is_floating for x in layer_state),
            *(False for _ in metrics_state),
        ]

    def _scope(
        self, hyperparameters: list, params: list, carry: Any
    ) -> keras.StatelessScope:
        layer_state, metrics_state = carry
        return keras.StatelessScope(
            [
                *zip(self.hyperparameters, hyperparameters, strict=True),
                *zip(self.weights, params, strict=True),
                *zip(self.layer_variables, layer_state, strict=True),
                *zip(self.metrics_variables, metrics_state, strict=True),
            ],
            collect_losses=True,
        )

    def _inner(
        self, hyperparameters: list, params: list, batch: Any, carry: Any
    ) -> tuple[tf.Tensor, tuple]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(
            unpadded(batch)
        )
        with self._scope(hyperparameters, params, carry) as scope:
            given = [scope.get_current_value(w) for w in self.weights]
            y_pred = self.trainer(x, training=self.training)
            _refuse_assignments(scope, self.weights, given)
            y_pred = mark_predictions(y_pred)
            y, y_pred, sample_weight = self.weigh(y, y_pred, sample_weight)
            loss = compute_loss(
                self.trainer, x, y, y_pred, sample_weight, training=True
            )
            loss = local_loss(loss)
            if self.tracks_metrics:
                loss_metric(self.trainer).update_state(loss)
                self.trainer.compute_metrics(x, y, y_pred, sample_weight)
        return loss, tuple(
            [scope.get_current_value(variable) for variable in variables]
            for variables in (self.layer_variables, self.metrics_variables)
        )

    def _given(self, hyperparameters: list) -> keras.StatelessScope:
        mapping = zip(self.hyperparameters, hyperparameters, strict=True)
        return keras.StatelessScope(list(mapping))

    def _decay(self, hyperparameters: list, params: list) -> list:
        """The decoupled decay of each weight that has a learned one."""
        with self._given(hyperparameters):
            return [
                weight.regularizer.decay(param) if decays else None
                for weight, param, decays in zip(
                    self.weights, params, _decays(self.weights), strict=True
                )
            ]

    def _curvature(self, hyperparameters: list) -> list:
        """The curvature of each weight's quadratic penalty, or `None`."""
        with self._given(hyperparameters):
            return [curvature_of(weight) for weight in self.weights]

    def _log_normalizer(self, hyperparameters: list, tau: float) -> tf.Tensor:
        """That of the prior that the learned penalties of the weights are."""
        priors = priors_of(self.trainer, self.weights)
        with self._given(hyperparameters):
            parts = [prior.log_normalizer(tau) for prior in priors]
            return tf.add_n(parts) if parts else tf.zeros([])

    def _project(self, params: list) -> list:
        """Where the constraint of each weight puts it, as Keras applies it."""
        with keras.StatelessScope(list(zip(self.weights, params, strict=True))):
            return [
                None
                if weight.constraint is None
                else tf.convert_to_tensor(weight.constraint(weight))
                for weight in self.weights
            ]

    def _outer(
        self, hyperparameters: list, params: list, batch: Any, carry: Any
    ) -> tf.Tensor:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(
            unpadded(batch)
        )
        with self._scope(hyperparameters, params, carry):
            y_pred = self.trainer(x, training=False)
            return local_loss(self.outer_loss(y, y_pred, sample_weight))


def _decays(weights: list) -> list[bool]:
    """Whether each of the weights has a learned weight decay."""
    return [getattr(weight.regularizer, "decays", False) for weight in weights]


def _refuse_overwriting(weights: list) -> None:
    """Refuses weights that Keras sets to their gradient, such as scales."""
    for weight in weights:
        if getattr(weight, "overwrite_with_gradient", False):
            raise ValueError(
                "Weights must follow their gradient in a chain. Received: "
                f"{weight.path!r}, which Keras overwrites with it, as in "
                "float8 layers. Train without that quantization."
            )


def _refuse_assignments(
    scope: keras.StatelessScope, weights: list, given: list
) -> None:
    """Refuses layers that assign to trainable weights when they are called.

    Keras would step on from what was assigned, to which no gradient leads.
    """
    for weight, value in zip(weights, given, strict=True):
        if scope.get_current_value(weight) is not value:
            raise ValueError(
                "A layer must not assign to a trainable weight when it is "
                "called, as `SpectralNormalization` does: a chain cannot be "
                f"differentiated through that. Received: {weight.path!r}, "
                "which was assigned in training mode. Compute the new value "
                "in `call` without assigning it, or set `trainable = False` "
                "in the layer."
            )


def layer_variables(model: keras.Model) -> list[keras.Variable]:
    """State of a model's layers that is neither weight nor hyperparameter."""
    return not_owned(model.non_trainable_variables, model)


def tensors(variables: list[keras.Variable]) -> list[tf.Tensor]:
    """The values of Keras variables now, as tensors."""
    return [tf.convert_to_tensor(variable.value) for variable in variables]


def loss_metric(trainer: keras.Model) -> keras.metrics.Metric:
    """The metric in which Keras averages a compiled model's loss."""
    return next(metric for metric in trainer.metrics if metric.name == "loss")


def build_on(
    trainer: keras.Model,
    batch: Any,
    weigh: Callable = lambda *batch: batch,
) -> None:
    """Creates all variables of a compiled model from one batch of data.

    Keras creates those of losses and metrics when they are first called,
    which must not happen within a chain. `weigh` is as in `KerasProblem`.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    # Recurrent layers with dropout draw masks when they predict as well.
    before = [(state, state.numpy()) for state in random_states(trainer)]
    y_pred = trainer(x, training=False)
    for variable, value in before:
        variable.assign(value)
    y, y_pred, sample_weight = weigh(y, y_pred, sample_weight)
    compute_loss(trainer, x, y, y_pred, sample_weight, training=False)
    trainer.compute_metrics(x, y, y_pred, sample_weight)
    trainer.reset_metrics()
