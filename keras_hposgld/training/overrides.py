"""What a user's model overrides of Keras's own methods, and how it is asked.

Keras's `fit` calls `compute_loss`, `compute_metrics` and their like on the
model that was compiled. A learner is compiled in place of the model inside of
it, so it asks that model, and lends it meanwhile what `compile` has made: the
compiled loss and metrics, which `super().compute_loss` reads. The model's own
`compile`, if there was one, is as before when the call has returned.
"""

import inspect
from collections.abc import Callable
from typing import Any

import keras

from keras_hposgld.hyperparameters.addresses import all_layers
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter

# What `keras.Model.compile` sets and the methods below read. Those with an
# underscore are private to Keras; they have no public names.
_LENT = (
    "_compile_loss",
    "_compile_metrics",
    "_loss_tracker",
    "compiled",
    "loss",
    "optimizer",
)
_ABSENT = object()


class Loan:
    """A context in which a model has what another was compiled with.

    It may be entered within itself: a replica's thread can wait inside of it
    while another one enters.

    Args:
        lender: The compiled `keras.Model`.
        borrower: The `keras.Model` inside of it.
    """

    def __init__(self, lender: keras.Model, borrower: keras.Model):
        self.lender = lender
        self.borrower = borrower
        self.depth = 0

    def __enter__(self) -> None:
        # Not by `setattr`, lest Keras track the metrics a second time.
        own, lent = vars(self.borrower), vars(self.lender)
        if self.depth == 0:
            self.kept = {name: own.get(name, _ABSENT) for name in _LENT}
        self.depth += 1
        own.update({name: lent[name] for name in _LENT if name in lent})

    def __exit__(self, *error: Any) -> None:
        self.depth -= 1
        if self.depth:
            return
        own, kept = vars(self.borrower), self.kept
        del self.kept
        for name, value in kept.items():
            if value is _ABSENT:
                own.pop(name, None)
            else:
                own[name] = value


def overrides(model: keras.Model, name: str) -> bool:
    """Whether a model has a method of its own in place of Keras's."""
    method = getattr(model, name)
    return getattr(method, "__func__", method) is not getattr(keras.Model, name)


def check_steps(model: keras.Model) -> None:
    """Checks that a model leaves Keras's steps as they are.

    Raises:
        ValueError: If it overrides `train_step` or `test_step`.
    """
    for name in ("train_step", "test_step"):
        if overrides(model, name):
            raise ValueError(
                f"`model` must not have a `{name}` of its own: an outer "
                "iteration stands in the place of Keras's step, so that it "
                f"would never be called. Received: model={model!r} of type "
                f"{type(model).__name__}, which overrides `{name}`. Use "
                "`keras_hposgld.callbacks.LearnHyperparameters` in the "
                "model's own `fit`, or override `compute_loss` instead."
            )


def compute_loss(
    trainer: keras.Model,
    x: Any,
    y: Any,
    y_pred: Any,
    sample_weight: Any,
    training: bool,
) -> Any:
    """Calls `trainer.compute_loss` as Keras does.

    Overrides from before Keras 3.3 have no argument `training`.
    """
    arguments = {}
    if "training" in inspect.signature(trainer.compute_loss).parameters:
        arguments["training"] = training
    return trainer.compute_loss(x, y, y_pred, sample_weight, **arguments)


def added_losses(model: keras.Model) -> list:
    """What the layers of a model added by `add_loss` when it was last called.

    Regularization is not among it: neither that of weights, nor what a
    hyperparameter has added.
    """
    # Private to Keras, whose `losses` adds the regularization of weights.
    return [
        loss
        for layer in all_layers(model)
        if not isinstance(layer, Hyperparameter)
        for loss in layer._get_own_losses()
    ]


def outer_loss_of(trainer: keras.Model) -> Callable:
    """The outer loss of a trainer where the user has given none.

    The compiled loss, without the regularization that `compute_loss` adds to
    it. Without a compiled loss: the sum of what layers added by `add_loss`.

    Args:
        trainer: A compiled `keras.Model`.

    Returns:
        Function `(y, y_pred, sample_weight)` to a scalar.
    """
    # Private to Keras; it has no public name.
    if trainer._compile_loss is not None:
        return trainer._compile_loss

    loan = getattr(trainer, "loan", None)
    model = loan.borrower if isinstance(loan, Loan) else trainer

    def loss(y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        losses = added_losses(model)
        if overrides(model, "compute_loss") or not losses:
            raise ValueError(
                "`outer_loss` must be given where the model is compiled "
                "without a loss, unless its layers call `add_loss` and it has "
                "no `compute_loss` of its own: the hyperparameters need "
                "something to lower that the regularization is not a part of. "
                f"Received: loss=None, outer_loss=None and model={model!r}. "
                "Pass a Keras loss or a function of `(y, y_pred)` as "
                "`outer_loss`."
            )
        return keras.ops.sum(losses)

    return loss
