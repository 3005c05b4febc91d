"""Which losses are minus the log-likelihood of an example.

Keras sums the losses of several outputs. At the temperature 1/n that is the
product of their likelihoods, if each loss is one, and a mean over the examples
of what is a sum over the numbers of an example.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.losses.learnable_loss import LearnableLoss
from keras_hposgld.training.posterior_average import losses_of_outputs

# Of Keras's own losses. In each axis but those that it sums over it is a mean.
OVER_CLASSES = (
    "categoricalcrossentropy",
    "sparsecategoricalcrossentropy",
    "kldivergence",
)
OF_NUMBERS = ("binarycrossentropy", "poisson")
LIKELIHOODS = (*OVER_CLASSES, *OF_NUMBERS, "ctc")
MEANS = ("sum_over_batch_size", "mean")
WITH_OUTER_DATA = 'an estimator that learns on outer data, such as "hpo_sgld"'


def check_loss(
    name: str, loss: Any = None, loss_weights: Any = None, **others: Any
) -> None:
    """Checks what can be seen of the losses that a learner is compiled with.

    Args:
        name: String, what to call the estimator.
        loss: As in `compile`.
        loss_weights: As in `compile`.
        **others: Not used.

    Raises:
        ValueError: If one is no likelihood, or no mean over the batch; if they
            are weighted.
    """
    if loss_weights is not None:
        raise ValueError(
            f"`loss_weights` cannot be given with `{name}`: they change the "
            "likelihood. Received: "
            f"loss_weights={loss_weights!r:.80}. Leave them out."
        )
    for part in keras.tree.flatten(loss):
        kind = _of_keras(keras.losses.get(part))
        if kind not in (*LIKELIHOODS, None):
            raise ValueError(
                f"`loss` must be minus a log-likelihood for `{name}`. "
                f"Received: loss={part!r:.80}, which says nothing of the "
                "noise. Use `keras_hposgld.losses.LearnableGaussianLoss()` "
                "for a regression, and a cross-entropy for classes. A loss "
                "of your own is taken for minus the log-likelihood of an "
                "example."
            )
        reduction = getattr(part, "reduction", MEANS[0])
        if reduction not in MEANS:
            raise ValueError(
                f"The loss must be a mean over the batch for `{name}`, which "
                "the temperature makes the sum over all examples of. Received: "
                f"loss={part!r:.80} with reduction={reduction!r}. Use "
                f"`reduction={MEANS[0]!r}`."
            )


def loss_of(learner: keras.Model) -> tuple[Any, str | None]:
    """The loss that a learner was compiled with, if it is one.

    Args:
        learner: `BilevelModel`, compiled.

    Returns:
        `keras.losses.Loss` or a function, and its name if it is one of
        Keras's, in lower case and without underscores; or `None` for either.
    """
    given = keras.tree.flatten(learner.plain_compile_arguments()["loss"])
    losses = [keras.losses.get(part) for part in given if part is not None]
    if len(losses) != 1:
        return None, None
    return losses[0], _of_keras(losses[0])


def _of_keras(loss: Any) -> str | None:
    """The name of one of Keras's own losses, in one spelling; else `None`."""
    kind = type(loss) if isinstance(loss, keras.losses.Loss) else loss
    if getattr(kind, "__module__", "").split(".")[0] != "keras":
        return None
    return kind.__name__.replace("_", "").lower()


def losses_and_outputs(learner: keras.Model, y_pred: Any) -> list[tuple]:
    """Pairs of a loss and the output that it judges.

    Args:
        learner: `BilevelModel`, compiled.
        y_pred: Structure of predictions.

    Raises:
        ValueError: If outputs and losses differ in number.
    """
    loss = learner.plain_compile_arguments()["loss"]
    names = getattr(learner.model, "output_names", None)
    outputs = keras.tree.flatten(y_pred)
    number = len(keras.tree.flatten(loss))
    if number > 1 and number != len(outputs) and not isinstance(loss, dict):
        raise ValueError(
            f"`{type(learner.hypergradient).__name__}` serves one loss for "
            "each output, whose likelihoods are multiplied. Received: "
            f"{len(outputs)} outputs and {number} losses. Use one of them, or "
            f"None for an output without; or {WITH_OUTER_DATA}."
        )
    losses = losses_of_outputs(loss, y_pred, names)
    return [
        (keras.losses.get(part), output)
        for part, output in zip(losses, outputs, strict=True)
        if part not in (None, "")
    ]


def check_terms(name: str, pairs: list[tuple], has_temperature: bool) -> None:
    """Checks that one temperature turns all means into sums.

    Args:
        name: String, what to call the estimator.
        pairs: What `losses_and_outputs` returned.
        has_temperature: Whether the user has given one.

    Raises:
        ValueError: If it does not.
    """
    numbers = [_number_of_terms(loss, y_pred) for loss, y_pred in pairs]
    for (loss, y_pred), number in zip(pairs, numbers, strict=True):
        if number > 1 and not has_temperature and len(set(numbers)) == 1:
            raise ValueError(
                f"The loss of an example is a mean over {number} numbers, and "
                f"`{name}` needs their sum. Received: loss={loss!r:.80} and "
                f"predictions of shape {tuple(y_pred.shape)}. Pass the "
                "temperature yourself: "
                f"`SGLD(temperature=1 / (n * {number}))` for n examples."
            )
    if len(set(numbers)) > 1:
        shapes = [tuple(y_pred.shape) for _, y_pred in pairs]
        raise ValueError(
            f"The losses of the outputs are means over {numbers} numbers of "
            f"an example, and `{name}` needs their sums, which no temperature "
            "makes of all. Received: "
            f"losses {[loss for loss, _ in pairs]!r:.120} and predictions of "
            f"shapes {shapes}. Use losses that are sums over the axes of an "
            "example."
        )


def _number_of_terms(loss: Any, y_pred: tf.Tensor) -> int:
    """Over how many numbers of an example a loss is a mean."""
    if isinstance(loss, LearnableLoss):
        return loss.num_terms(y_pred)
    kind = _of_keras(loss)
    if kind in OF_NUMBERS:
        return math.prod(y_pred.shape[1:])
    return math.prod(y_pred.shape[1:-1]) if kind in OVER_CLASSES else 1
