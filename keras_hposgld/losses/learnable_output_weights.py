"""Learned weights of the losses of a model with several outputs.

Keras adds up the losses of the outputs. Here each of them, but those that are
fixed, is multiplied by a weight of its own, which is learned on the outer loss:
an output that does not help gets a small one. The weight is a factor of the
training loss alone.
"""

from collections.abc import Collection
from typing import Any

import optree

from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.losses.output_weight import FixedOutputWeight
from keras_hposgld.losses.output_weight import LearnableOutputWeight
from keras_hposgld.losses.output_weight import WeightedLoss


class LearnableOutputWeights(dict):
    """Losses of the outputs of a model, each with a learned weight.

    It is a dictionary of losses, and goes where Keras takes one: into `compile`
    of a `BilevelModel`, or into that of a plain model whose `fit` has the
    callback `LearnHyperparameters`. `compile` or the callback asks for an
    `outer_loss` beside it, such as the loss of the main output:
    `{"main": "mse"}`.

    In the logs the loss of an output includes its weight, so that the losses
    of the outputs add up to the loss. For numbers without weights ask for
    `metrics`.

    A file keeps what was learned. What is loaded from it is a plain dictionary
    of such losses; `LearnableOutputWeights(loaded.loss)` makes this of it.

    Args:
        losses: Dictionary from the name of an output, as the model names it,
            to its loss: a Keras loss, its name, a function of `(y, y_pred)`, or
            `None` for an output without. At least two have one.
        initial_value: Float in `(0, max_value)`, each weight at first, or a
            dictionary of them. Defaults to `1.0`, also for names that are not
            in it.
        max_value: Float, the bound of the learned weights. Defaults to `10.0`.
        fixed: The name, or a list of names, of outputs that keep their
            `initial_value`, such as the main one. Defaults to `None`. If none
            is fixed, a common factor of all weights is learned as well, which
            acts as a learning rate does.

    Attributes:
        weights: Dictionary from the name of an output to its weight now, a
            float. Keras takes it as `loss_weights`.
        losses: Dictionary from the name of an output to its loss without the
            weight.

    Raises:
        TypeError: If `losses` is not a dictionary.
        ValueError: If fewer than two outputs have a loss, if no weight is
            learned, if `initial_value` or `fixed` name an output that has no
            loss, or if a number is out of range.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(8, "tanh")(inputs)
    model = keras.Model(
        inputs,
        {
            "main": keras.layers.Dense(1, name="main")(hidden),
            "color": keras.layers.Dense(1, name="color")(hidden),
        },
    )
    loss = hs.losses.LearnableOutputWeights(
        {"main": "mse", "color": "mse"}, fixed="main"
    )
    learner = hs.BilevelModel(model)
    learner.compile(
        optimizer=hs.SGLD(0.05), loss=loss, outer_loss={"main": "mse"}
    )
    x = np.random.normal(size=(60, 4))
    y = {"main": x[:, :1], "color": np.random.normal(size=(60, 1))}
    learner.fit(x, y, outer_split=0.3, verbose=0)
    print(loss.weights)
    ```
    """

    def __init__(
        self,
        losses: dict,
        initial_value: float | dict = 1.0,
        max_value: float = 10.0,
        fixed: str | Collection[str] | None = None,
    ):
        if not isinstance(losses, dict):
            raise TypeError(
                "`losses` must be a dictionary from the names of outputs to "
                f"their losses. Received: losses={losses!r}. Name the layers "
                "that make the outputs, as in `Dense(1, name='main')`."
            )
        names = [name for name, loss in losses.items() if loss is not None]
        fixed = [fixed] if isinstance(fixed, str) else list(fixed or ())
        starts: dict = dict.fromkeys(names, initial_value)
        if isinstance(initial_value, dict):
            _check_names("initial_value", initial_value, names)
            starts = dict.fromkeys(names, 1.0) | initial_value
        if len(names) < 2:
            raise ValueError(
                "`losses` must hold the losses of two outputs at least: the "
                "weight of a single loss acts as a learning rate does. "
                f"Received: losses={losses!r}. Pass that loss alone."
            )
        _check_names("fixed", fixed, names)

        def weighted(name: str, loss: Any) -> Any:
            if loss is None or isinstance(loss, WeightedLoss):
                return loss
            start = starts[name]
            if name in fixed:
                # A learned loss has to stand where it is found.
                is_plain = isinstance(loss, Hyperparameter) and start == 1
                return (
                    loss if is_plain else FixedOutputWeight(loss, start, name)
                )
            return LearnableOutputWeight(loss, start, max_value, name)

        super().__init__(
            {name: weighted(name, loss) for name, loss in losses.items()}
        )
        learned = LearnableOutputWeight
        if not any(isinstance(loss, learned) for loss in self.values()):
            raise ValueError(
                "`fixed` must leave a weight that is learned. Received: "
                f"fixed={fixed!r} with losses of {names}. Name the main output "
                "alone, or pass a plain dictionary of losses to `compile`."
            )

    @property
    def weights(self) -> dict[str, float]:
        return {
            name: float(part.constrained())
            if isinstance(part, WeightedLoss)
            else 1.0
            for name, part in self.items()
            if part is not None
        }

    @property
    def losses(self) -> dict[str, Any]:
        return {
            name: part.loss if isinstance(part, WeightedLoss) else part
            for name, part in self.items()
        }


def _check_names(argument: str, given: Collection, names: list[str]) -> None:
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(
            f"`{argument}` must name outputs that have a loss. Received: "
            f"{argument}={given!r} with losses of {names}. Leave out {unknown}."
        )


def _flatten(losses: Any) -> tuple[list, tuple, tuple]:
    names = tuple(sorted(losses))
    return [losses[name] for name in names], names, names


def _unflatten(names: Any, values: Any) -> LearnableOutputWeights:
    # Keras packs losses and weights together, so these may be anything.
    packed = LearnableOutputWeights.__new__(LearnableOutputWeights)
    packed.update(zip(names, values, strict=True))
    return packed


# Keras takes a subclass of `dict` for a leaf of a structure, unless it is told
# otherwise. This is what its own dictionaries do; the namespace has no public
# name.
optree.register_pytree_node(
    LearnableOutputWeights, _flatten, _unflatten, namespace="keras"
)
