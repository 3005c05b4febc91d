"""A Keras model around a model of the user's, which stays visible.

What a user knows of the model is asked of the model: its summary, its layers by
name, its plain copy.
"""

import math
from typing import Any

import keras

from keras_hposgld.hyperparameters.shown import ShowsHyperparameters
from keras_hposgld.training import export


class ModelWrapper(ShowsHyperparameters, keras.Model):
    """A Keras model that is called as the model inside of it.

    Args:
        model: `keras.Model`.
        name: String.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
    """

    def __init__(self, model: keras.Model, name: str | None = None):
        super().__init__(name=name)
        if not isinstance(model, keras.Model):
            raise TypeError(
                "`model` must be a `keras.Model`. "
                f"Received: model={model!r} of type {type(model).__name__}."
            )
        self.model = model

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def build(self, input_shape=None):
        if not self.model.built:
            self.model.build(input_shape)

    def summary(self, *args, print_fn=None, **keras_arguments):
        """Prints Keras's summary of the model, and the hyperparameters.

        Keras counts hyperparameters among the non-trainable parameters; the
        line below its table says how many of those they are.
        """
        self.model.summary(*args, print_fn=print_fn, **keras_arguments)
        number = sum(math.prod(v.shape) for v in self.hyperparameters)
        (print_fn or print)(
            f" Hyperparameters: {number:,} (learned on the outer data; Keras "
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
