"""Which labels are wrong: by learned weights and the model they trained.

The learned weights keep wrong labels out of the training, so that the model
goes by the outer data where the two disagree. Its probabilities of the classes
then meet what its errors have in common: how often one class is given for
another, see `label_channel`.

A learned weight itself is a poor witness. It sums the products of an example's
gradient with the outer one, and is middling for a right label which the model
knows. It is heard through the model alone.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.data.kinds import yields_batches
from keras_hposgld.diagnostics.label_channel import fit_label_channel
from keras_hposgld.training.likelihood import loss_of

OF_CLASSES = ("categoricalcrossentropy", "sparsecategoricalcrossentropy")
OF_TWO = "binarycrossentropy"
SUM_TOLERANCE = 1e-2  # of probabilities, which may have 16 bits
SMALLEST = 1e-12  # of a probability, before its logarithm


def label_error_scores(
    learner: keras.Model,
    x: Any,
    y: Any,
    *,
    models: Iterable[keras.Model] = (),
    batch_size: int = 256,
) -> np.ndarray:
    """How likely the label of each training example is wrong.

    The score of an example with the label g is `1 - P(g | x, g)`: one minus
    the probability that g is the true class, see `label_probabilities`. Sort
    by it for a list of suspects. **The order is what counts.** The model was
    trained on these labels, so that scores are on the whole too small.

    Args:
        learner: As in `label_probabilities`, like all arguments.
        x: Inputs.
        y: Labels.
        models: Models to average with.
        batch_size: Integer.

    Returns:
        float64 array `(n,)` in [0, 1], higher where a label is more likely
        wrong.

    Raises:
        TypeError: As `label_probabilities`.
        ValueError: As `label_probabilities`.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    y[:60] = 1 - y[:60]  # wrong labels
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    learner = hs.BilevelModel(model, example_weights=hs.ExampleWeights(240))
    learner.compile(
        optimizer=hs.SGLD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        hyper_optimizer=keras.optimizers.Adam(0.1),
    )
    outer = x[240:], y[240:]
    learner.fit(
        x[:240], y[:240], outer_data=outer, batch_size=80, epochs=20, verbose=0
    )
    scores = hs.diagnostics.label_error_scores(learner, x[:240], y[:240])
    print("suspects:", np.argsort(-scores)[:10])
    ```
    """
    probabilities, labels = _judged(learner, x, y, models, batch_size)
    return 1.0 - probabilities[np.arange(len(labels)), labels]


def label_probabilities(
    learner: keras.Model,
    x: Any,
    y: Any,
    *,
    models: Iterable[keras.Model] = (),
    batch_size: int = 256,
) -> np.ndarray:
    """Probabilities of the true class of each training example.

    They weigh what the model says of the inputs with what the given labels
    are worth: `P(k | x, g)` in `keras_hposgld.diagnostics.label_channel`. As
    soft targets they correct the labels, for a refit on all examples.

    Args:
        learner: `BilevelModel` with `example_weights`, which has learned them.
            One output, and a cross-entropy as its loss.
        x: Inputs of the training examples, arrays. With `ExampleWeights` they
            are all of them, in the order of the table.
        y: The given labels: integers `(n,)` or `(n, 1)`, or one-hot vectors
            `(n, K)`.
        models: Models whose predictions have the form of the learner's. The
            mean of the log-probabilities of all models is taken. One trained
            on the outer data alone never saw the labels: it helps where there
            are many outer examples, or most labels are wrong.
        batch_size: Integer, of the predictions. Defaults to `256`.

    Returns:
        float64 array `(n, K)`, whose rows sum to 1. K is 2 where the model
        predicts one number.

    Raises:
        TypeError: If `learner` has no learned example weights.
        ValueError: If they are all the same still, the numbers of examples
            differ, the task is no classification with one output, or labels
            are not classes.
    """
    return _judged(learner, x, y, models, batch_size)[0]


def _judged(
    learner: Any, x: Any, y: Any, models: Any, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the true classes, and the given labels."""
    _check_weights(learner, x)
    name, from_logits = _form(learner)
    x = as_arrays(x)
    logs = [
        _log_probabilities(
            model.predict(x, batch_size=batch_size, verbose=0),
            name,
            from_logits,
        )
        for model in (learner, *models)
    ]
    shapes = {one.shape for one in logs}
    if len(shapes) > 1:
        raise ValueError(
            "`models` must predict as many classes as the learner. "
            f"Received: predictions of shapes {[one.shape for one in logs]}."
        )
    labels = _labels(as_arrays(y), *logs[0].shape)
    return fit_label_channel(np.mean(logs, axis=0), labels).posterior, labels


def _check_weights(learner: Any, x: Any) -> None:
    weights = getattr(learner, "example_weights", None)
    if weights is None:
        raise TypeError(
            "`learner` must have learned weights of the examples: a model that "
            "was trained without them knows the wrong labels by heart. "
            f"Received: {learner!r:.80}. Use "
            "`BilevelModel(model, example_weights=ExampleWeights(n))`."
        )
    values = np.asarray(weights.numpy())
    if values.size > 1 and np.ptp(values) == 0.0:
        raise ValueError(
            "`learner` must have learned its example weights. Received: a "
            f"learner whose weights are all {values.flat[0]:.3g}. Call "
            "`learner.fit(..., outer_data=...)` before."
        )
    if yields_batches(x):
        raise ValueError(
            "`x` must be arrays, in the order of the labels. Received: "
            f"x of type {type(x).__name__}. Pass its inputs and labels."
        )
    length = len(keras.tree.flatten(x)[0])
    expected = getattr(weights, "num_examples", length)
    if length != expected:
        raise ValueError(
            "`x` must be the training examples of the learned weights, in "
            f"their order. Received: {length} examples and {expected} weights. "
            "Leave out the outer examples."
        )


def _form(learner: Any) -> tuple[str, bool]:
    """The kind of cross-entropy, and whether predictions are logits."""
    loss, name = loss_of(learner) if learner.compiled else (None, None)
    if name is None and hasattr(loss, "from_logits"):
        name = OF_CLASSES[0]  # a learned loss of classes
    if name not in (*OF_CLASSES, OF_TWO):
        raise ValueError(
            "`learner` must be compiled with one cross-entropy, for a "
            f"classification with one output. Received: loss={loss!r:.80}."
        )
    return name, bool(getattr(loss, "from_logits", False))


def _log_probabilities(y_pred: Any, name: str, from_logits: bool) -> np.ndarray:
    """Logarithms of class probabilities, `(n, K)` and float64."""
    if len(keras.tree.flatten(y_pred)) != 1:
        raise ValueError(
            "`learner` must have one output. Received: "
            f"{len(keras.tree.flatten(y_pred))} outputs."
        )
    values = np.asarray(keras.tree.flatten(y_pred)[0], "float64")
    is_of_two = name == OF_TWO
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or is_of_two != (values.shape[1] == 1):
        raise ValueError(
            "Predictions must be of shape (examples, classes), or "
            "(examples, 1) with a binary cross-entropy. Received: "
            f"predictions of shape {values.shape} and a loss of the kind "
            f"{name!r}. Several labels of an example are not served."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            "Predictions must be finite. Received: "
            f"{np.sum(~np.isfinite(values))} numbers that are not. Train with "
            "a smaller learning rate."
        )
    if from_logits:
        logits = np.hstack([np.zeros_like(values), values])
        return logits if is_of_two else values
    parts = np.hstack([1.0 - values, values]) if is_of_two else values
    _check_probabilities(parts)
    return np.log(np.maximum(parts, SMALLEST))


def _check_probabilities(parts: np.ndarray) -> None:
    worst = np.abs(parts.sum(axis=1) - 1.0).max()
    if parts.min() < 0.0 or worst > SUM_TOLERANCE:
        raise ValueError(
            "Predictions must be probabilities where the loss has "
            f"`from_logits=False`. Received: numbers from {parts.min():.3g} "
            f"to {parts.max():.3g}, whose sums are off 1 by {worst:.3g}. Use "
            "`from_logits=True`."
        )


def _labels(y: Any, number: int, num_classes: int) -> np.ndarray:
    """Labels as integers `(n,)`."""
    given = np.asarray(y)
    if len(given) != number:
        raise ValueError(
            "`y` must have a label for each example. Received: "
            f"{len(given)} labels and {number} examples."
        )
    if given.shape == (number, num_classes):
        is_valid = np.isin(given, (0, 1)).all() and (given.sum(1) == 1).all()
        labels = given.argmax(axis=1)
    else:
        is_valid = given.size == number
        labels = given.reshape(-1)
        is_valid &= np.isin(labels, range(num_classes)).all()
    if not is_valid:
        raise ValueError(
            "`y` must be integers from 0 to the number of classes - 1, or "
            f"one-hot vectors. Received: y of shape {given.shape} with "
            f"{num_classes} classes, from {given.min()} to {given.max()}."
        )
    return labels.astype("int64")
