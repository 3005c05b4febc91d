"""The outer loss that the user names: one loss, or some outputs' losses."""

from collections.abc import Callable
from typing import Any

import keras

from keras_hposgld.losses.keras_loss import keras_loss


def loss_function(
    loss: Any, output_names: list[str] | None = None
) -> Callable[..., Any]:
    """A function `(y, y_pred, sample_weight)` to a scalar.

    Args:
        loss: What `keras.losses.get` takes: a name, a function of
            `(y, y_pred)`, or a `keras.losses.Loss`. Or a dictionary of them by
            the names of outputs, whose sum is meant: outputs that it does not
            name, or has `None` for, do not count.
        output_names: List of strings: the names of the outputs of a model that
            returns a list of them, where it has such names.

    Raises:
        ValueError: If it is a list of losses, or a dictionary without one.
    """
    if isinstance(loss, dict):
        return LossesOfOutputs(loss, output_names)
    if isinstance(loss, list | tuple):
        raise ValueError(
            "`outer_loss` must be one loss, or a dictionary of losses by the "
            f"names of outputs. Received: outer_loss={loss!r}. Pass "
            '`{"main": "mse"}`, say, a function of all targets and '
            "predictions, or None for the compiled loss."
        )
    return keras_loss(loss)


class LossesOfOutputs:
    """The sum of the losses of some outputs.

    Args:
        losses: Dictionary from the name of an output to its loss, or to `None`.
        output_names: As in `loss_function`.

    Raises:
        ValueError: If it holds no loss.
    """

    def __init__(self, losses: dict, output_names: list[str] | None = None):
        self.losses = {
            name: keras_loss(loss)
            for name, loss in losses.items()
            if loss is not None
        }
        self.output_names = output_names
        if not self.losses:
            raise ValueError(
                "`outer_loss` must hold the loss of an output. Received: "
                f"outer_loss={losses!r}. Name the output that counts, as in "
                '`{"main": "mse"}`, or pass None for the compiled loss.'
            )

    def __call__(self, y: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The sum on a batch.

        Args:
            y: Structure of targets: a dictionary by the names of outputs, or
                as many as there are outputs, in their order.
            y_pred: The same of predictions.
            sample_weight: The same of sample weights, or one tensor for all
                outputs, or `None`.

        Raises:
            ValueError: If a loss is of an output that there is not.
        """
        names = self.names_of(y_pred)
        check_names(list(self.losses), names)
        predictions, targets = _by_name(y_pred, names), _by_name(y, names)
        weights = dict.fromkeys(names, sample_weight)
        if keras.tree.is_nested(sample_weight):
            weights = _by_name(sample_weight, names)
        missing = [n for n in self.losses if targets.get(n) is None]
        if missing:
            raise ValueError(
                "`outer_loss` needs the targets of the outputs that it names. "
                f"Received: none for {missing}, with losses of "
                f"{list(self.losses)}. Pass targets by the names of outputs."
            )
        return sum(
            loss(targets[name], predictions[name], weights.get(name))
            for name, loss in self.losses.items()
        )

    def names_of(self, y_pred: Any) -> list[str]:
        """The names of outputs, in the order in which Keras lists them.

        Args:
            y_pred: Structure of predictions.

        Raises:
            ValueError: If they have none.
        """
        if isinstance(y_pred, dict):
            order = dict(zip(y_pred, y_pred, strict=True))
            return keras.tree.flatten(order)
        number = len(keras.tree.flatten(y_pred))
        if self.output_names is None or len(self.output_names) != number:
            raise ValueError(
                "`outer_loss` can be a dictionary where the outputs of the "
                f"model have names. Received: outer_loss={self.losses!r} and "
                f"{number} outputs without names. Let the model return a "
                "dictionary of outputs, or pass a function of all targets and "
                "predictions."
            )
        return self.output_names


def check_outputs(loss: Any, model: keras.Model) -> None:
    """Checks the names of an outer loss, as far as the model has told its own.

    Args:
        loss: As in `loss_function`, or `None`.
        model: Built `keras.Model`.

    Raises:
        ValueError: If it names an output that the model does not have.
    """
    # A graph knows its outputs before it is called.
    if isinstance(loss, dict) and getattr(model, "outputs", None):
        function = LossesOfOutputs(loss, getattr(model, "output_names", None))
        check_names(list(function.losses), function.names_of(model.output))


def check_names(given: list[str], names: list[str]) -> None:
    """Checks that the losses are of outputs.

    Args:
        given: List of strings, the names of the losses.
        names: List of strings, the names of the outputs.

    Raises:
        ValueError: If one of them is of none.
    """
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(
            "`outer_loss` must name outputs of the model. Received: "
            f"outer_loss with losses of {given}, where the model has the "
            f"outputs {names}. Correct {unknown}."
        )


def _by_name(parts: Any, names: list[str]) -> dict[str, Any]:
    """What there is for each output, by its name."""
    if isinstance(parts, dict):
        return parts
    flat = keras.tree.flatten(parts)
    return dict(zip(names, flat, strict=True))
