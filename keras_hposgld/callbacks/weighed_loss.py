"""Learned weights of examples in the `fit` of a plain Keras model.

Keras's `train_step` computes the loss and the metrics from a batch whose third
part are keys, such as indices. For the time of a `fit` functions of ours stand
in their place, which look the weights up first.
"""

import inspect
import threading
import weakref
from typing import Any

import keras

from keras_hposgld.hyperparameters.batch_weights import BatchWeights


class WeighedLoss:
    """Weighs the examples that a model is trained on.

    Args:
        weights: `BatchWeights`.
    """

    def __init__(self, weights: BatchWeights):
        self.weights = weights
        self.was_asked = False
        self._model: Any = lambda: None
        # Each replica is traced in a thread of its own, and they take turns.
        self._here = threading.local()

    def install(self, model: keras.Model) -> None:
        """Puts itself between a model and its loss and metrics.

        Raises:
            ValueError: If the loss does not know whether it is of training.
        """
        leftover = vars(model).get("compute_loss")
        if isinstance(leftover, _Replacement):
            leftover.owner.remove()  # of a `fit` that was broken off
        if "training" not in inspect.signature(model.compute_loss).parameters:
            raise ValueError(
                "With `example_weights` the `compute_loss` of a model must "
                "have the argument `training`, since the weights are for "
                f"training alone. Received: {model!r}. Add it."
            )
        self._model = weakref.ref(model)
        self._methods = model.compute_loss, model.compute_metrics
        self._train_function = model.train_function
        # Not by `setattr`, which Keras would track.
        vars(model)["compute_loss"] = _Replacement(self, "_compute_loss")
        vars(model)["compute_metrics"] = _Replacement(self, "_compute_metrics")
        model.make_train_function(force=True)

    def remove(self) -> None:
        """Leaves the model as it was."""
        model = self._model()
        if model is None or not isinstance(
            vars(model).get("compute_loss"), _Replacement
        ):
            return
        # The instance's own attributes hide the methods of the class.
        del vars(model)["compute_loss"], vars(model)["compute_metrics"]
        model.train_function = self._train_function
        self._model = lambda: None

    def check_asked(self) -> None:
        """Checks, after a step, that it was asked for the weights.

        Raises:
            ValueError: If the model computes its loss by other means.
        """
        if not self.was_asked:
            model = self._model()
            raise ValueError(
                "With `example_weights` the `train_step` of a model must call "
                "`self.compute_loss`, which looks the weights up. Received: "
                f"{model!r}, whose step does not. Call it there."
            )

    def _compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        compute_loss, _ = self._methods
        if training:
            self._check_keys(sample_weight)
            self.was_asked = True
            weighed = self.weights.weigh(y, y_pred, sample_weight)
            self._here.batch = y_pred, weighed
            y, y_pred, sample_weight = weighed
        return compute_loss(x, y, y_pred, sample_weight, training)

    def _compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        _, compute_metrics = self._methods
        batch = getattr(self._here, "batch", None)
        self._here.batch = None
        if batch is not None and batch[0] is y_pred:  # in a step of training
            y, y_pred, sample_weight = batch[1]
        return compute_metrics(x, y, y_pred, sample_weight)

    def _check_keys(self, keys: Any) -> None:
        dtype = getattr(keys, "dtype", None)
        if dtype is None or "int" not in keras.backend.standardize_dtype(dtype):
            received = "None" if dtype is None else f"numbers of type {dtype}"
            what = self.weights.keys
            raise ValueError(
                f"With `example_weights` the {what} of the training examples "
                "must stand where `fit` has sample weights, as integers: "
                f"`model.fit(x, y, sample_weight={what})`, or batches (inputs, "
                f"targets, {what}). Received: {received}. (After a `fit` that "
                "was broken off, this holds until one with the callback ends.)"
            )


class _Replacement:
    """A method of a model, for the time of a `fit`."""

    def __init__(self, owner: WeighedLoss, name: str):
        self.owner = owner
        self.function = getattr(owner, name)

        # By which Keras and others ask for its arguments.
        self.__signature__ = inspect.signature(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)
