"""A Keras model around a model of the user's, which stays visible.

What a user knows of the model is asked of the model: its summary, its layers by
name, its plain copy. What it overrides of Keras's own methods is called.
"""

import math
from collections.abc import Callable
from typing import Any
from typing import NoReturn

import keras

from keras_hposgld.hyperparameters.shown import ShowsHyperparameters
from keras_hposgld.training import export
from keras_hposgld.training.overrides import check_steps
from keras_hposgld.training.overrides import compute_loss
from keras_hposgld.training.overrides import Loan
from keras_hposgld.training.overrides import overrides


class ModelWrapper(ShowsHyperparameters, keras.Model):
    """A Keras model that is called as the model inside of it.

    Args:
        model: `keras.Model`.
        name: String.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If `model` overrides `train_step` or `test_step`.
    """

    def __init__(self, model: keras.Model, name: str | None = None):
        super().__init__(name=name)
        if not isinstance(model, keras.Model):
            raise TypeError(
                "`model` must be a `keras.Model`. "
                f"Received: model={model!r} of type {type(model).__name__}."
            )
        check_steps(model)
        self.model = model
        self.loan = Loan(self, model)

    def call(self, inputs: Any, training: Any = None) -> Any:
        return self.model(inputs, training=training)

    def build(self, input_shape: Any = None) -> None:
        # Keras's own `build` would mark a subclassed model as built before its
        # layers are, and warn. Calling the model builds it.
        has_own = type(self.model).build is not keras.Model.build
        if has_own and not self.model.built:
            self.model.build(input_shape)

    # What it overrides.

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """As the model computes it."""
        if not overrides(self.model, "compute_loss"):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        with self.loan:
            return compute_loss(
                self.model, x, y, y_pred, sample_weight, training
            )

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict:
        """As the model computes them."""
        if not overrides(self.model, "compute_metrics"):
            return super().compute_metrics(x, y, y_pred, sample_weight)
        with self.loan:
            logs = self.model.compute_metrics(x, y, y_pred, sample_weight)
        return self.get_metrics_result() | logs

    def get_metrics_result(self) -> dict:
        """The logs, those that the model makes included."""
        logs = super().get_metrics_result()
        if overrides(self.model, "get_metrics_result"):
            with self.loan:
                logs |= self.model.get_metrics_result()
        return logs

    def predict_step(self, data: Any) -> Any:
        """As the model predicts a batch."""
        if not overrides(self.model, "predict_step"):
            return super().predict_step(data)
        with self.loan:
            return self.model.predict_step(data)

    @property
    def metrics(self) -> list:
        """Those of Keras's `fit` of the model, then those of the learner.

        Keras leaves out the metrics that a model inside of a model holds.
        """
        own = super().metrics
        with self.loan:  # compiled ones first, in the order of Keras
            models = self.model.metrics
        ordered = [*own[:1], *models, *own]  # the loss before any other
        return list({id(metric): metric for metric in ordered}.values())

    # What it is.

    @property
    def output_names(self) -> list[str]:
        """By which Keras names losses and metrics; not all models have them."""
        return self.model.output_names

    @property
    def inputs(self) -> Any:
        return self.model.inputs

    @property
    def outputs(self) -> Any:
        return self.model.outputs

    @property
    def input_shape(self) -> Any:
        return self.model.input_shape

    @property
    def output_shape(self) -> Any:
        return self.model.output_shape

    def get_layer(
        self, name: str | None = None, index: int | None = None
    ) -> keras.layers.Layer:
        """A layer of the model, by its name or its number."""
        return self.model.get_layer(name=name, index=index)

    def count_params(self) -> int:
        """The number of weights and hyperparameters, as of the model."""
        return self.model.count_params()

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As in Keras; files of the older kind, `.h5`, are refused."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "`filepath` must not be a legacy HDF5 file: a model that is "
                "loaded from one has no learned strengths. Received: "
                f"filepath={str(filepath)!r}. Save to a file that ends in "
                '".keras", or the plain model: '
                "`learner.export().save(filepath)`."
            )
        return super().save(filepath, *args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: weights that are still trained keep their precision."""
        raise RuntimeError(
            "`quantize` cannot be called on a learner: its weights are still "
            "to be trained. Call it on the plain model: "
            '`plain = learner.export()`, then `plain.quantize("int8")`.'
        )

    def summary(
        self,
        *args: Any,
        print_fn: Callable | None = None,
        **keras_arguments: Any,
    ) -> None:
        """Prints Keras's summary of the model, and the hyperparameters.

        Keras counts hyperparameters among the non-trainable parameters; the
        line below its table says how many of those they are.
        """
        self.model.summary(*args, print_fn=print_fn, **keras_arguments)
        number = sum(math.prod(v.shape) for v in self.hyperparameters)
        (print_fn or print)(
            f" Hyperparameters: {number:,} (learned by the outer level; Keras "
            "counts those of its layers as non-trainable)"
        )

    def export(
        self,
        filepath: Any = None,
        format: str = "tf_saved_model",
        **keras_arguments: Any,
    ) -> keras.Model:
        """A plain Keras model, which loads without `keras_hposgld`.

        Args:
            filepath: Where to write it for serving, as in
                `keras.Model.export`. `None` (default): it is not written.
            format: As in `keras.Model.export`.
            **keras_arguments: As in `keras.Model.export`.

        Returns:
            `keras.Model` with the same weights, predictions and losses. Its
            regularizers are Keras's own, which take one number: the learned
            strength where there is one per tensor, else the number that gives
            the same penalty now. Train on under the learned strengths with
            `refit` or with the wrapped model.
        """
        return export.exported(
            self.model, filepath, format=format, **keras_arguments
        )
