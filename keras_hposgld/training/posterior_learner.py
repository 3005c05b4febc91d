"""A learner whose predictions are averages over what its chain has passed."""

from typing import Any

import keras
import numpy as np

from keras_hposgld.core.checks import check_count
from keras_hposgld.training import posterior_export
from keras_hposgld.training.learner import Learner
from keras_hposgld.training.overrides import overrides
from keras_hposgld.training.posterior import PosteriorSamples
from keras_hposgld.training.posterior_predictions import PosteriorPredictions

DEFAULT_SAMPLES = 32


class PosteriorLearner(Learner):
    """A learner that keeps samples of its weights for predictions.

    `predict`, `evaluate`, `predict_on_batch` and `test_on_batch` average over
    the samples that are used, those of the second half of the training so far.
    Where there are none they predict by the weights as they are. Calling the
    learner always does.

    Args:
        model: `keras.Model`.
        seed: Integer or `None`.
        name: String.
    """

    predict_function: Any  # Keras's own, until it is made

    def __init__(
        self,
        model: keras.Model,
        seed: int | None = None,
        name: str | None = None,
    ):
        super().__init__(model, seed=seed, name=name)
        self.posterior = PosteriorSamples()
        self._predictions = PosteriorPredictions(self)

    def configure_posterior(self, number: Any) -> None:
        """Takes `posterior_samples` of `compile`, once the estimator is known.

        Raises:
            ValueError: If it is out of range, or above 0 where the estimator
                needs outer data or the model has a `predict_step` of its own.
        """
        needs_outer = self.hypergradient.needs_outer
        if number is None:
            number = 0 if needs_outer else DEFAULT_SAMPLES
        number = check_count("posterior_samples", number, 0)
        received = f"Received: posterior_samples={number}"
        if number and needs_outer:
            raise ValueError(
                "`posterior_samples` must be 0 with an estimator that needs "
                "outer data, whose chain follows no posterior of all examples. "
                f"{received} and {self.hypergradient!r}. Leave it out, or use "
                '`hypergradient="evidence"`.'
            )
        if number and overrides(self.model, "predict_step"):
            raise ValueError(
                "`posterior_samples` must be 0 for a model with a "
                "`predict_step` of its own, of which it is not known what an "
                f"average would be. {received} and model={self.model!r}. Pass "
                "`posterior_samples=0`, or leave `predict_step` out."
            )
        if self.compiled:  # else they are those of a file
            self.posterior.reset()
        self.posterior.number = number
        self._predictions.forget()

    def reset_posterior(self) -> None:
        """Forgets the kept samples: predictions are those of the weights now.

        They are kept from `fit` to `fit`. Call this where the weights were set
        by hand, or where other data are to be learned from.
        """
        self.posterior.reset()

    def num_samples_used(self) -> int:
        """How many samples predictions are averaged over now."""
        return int(self.posterior.num_used().numpy())

    def check_samples(self, argument: str) -> int:
        """How many samples are used.

        Args:
            argument: String, what needs some.

        Raises:
            ValueError: If there are none.
        """
        number = self.num_samples_used()
        if not number:
            raise ValueError(
                f"`{argument}` needs samples of the weights. Received: a "
                "learner that has kept 0. Call `fit` after `compile(..., "
                'hypergradient="evidence")`, with `posterior_samples` above 0.'
            )
        return number

    # What Keras calls to predict and to evaluate.

    def call(self, inputs: Any, training: Any = None) -> Any:
        present = super().call(inputs, training=training)
        return self._predictions.of(inputs, present)

    def predict_step(self, data: Any) -> Any:
        """As in Keras, of averaged predictions."""
        with self._predictions:
            return super().predict_step(data)

    def test_step(self, data: Any) -> dict:
        """As in Keras, of averaged predictions."""
        with self._predictions:
            return super().test_step(data)

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: Any = "auto",
        steps: int | None = None,
        callbacks: Any = None,
        *,
        return_std: bool = False,
    ) -> Any:
        """As in Keras, averaged over the samples of the weights.

        What is averaged are the predictions. Where the loss of an output is
        one of Keras's cross-entropies with `from_logits=True`, it is the
        probabilities, turned into logits again: the softmax (or sigmoid) of
        the result is the mean probability.

        Args:
            x: As in Keras, like all that are not named here.
            return_std: Boolean: whether to return the standard deviation over
                the samples as well, of probabilities where those are averaged.
                The noise of the targets is not a part of it. Defaults to
                `False`.

        Returns:
            Array or structure of arrays; with `return_std=True` a tuple of
            two, the averages and the standard deviations.

        Raises:
            ValueError: If `return_std=True` and there are no samples.

        Example:

        ```python
        import keras
        import keras_hposgld as hs
        import numpy as np

        prior = hs.regularizers.LearnableL2(0.01)
        dense = keras.layers.Dense(1, kernel_regularizer=prior)
        learner = hs.BilevelModel(keras.Sequential([dense]))
        learner.compile(
            optimizer=hs.SGLD(0.01),
            loss=hs.losses.LearnableGaussianLoss(),
            hypergradient=hs.estimators.Evidence(0, 4),
        )
        x = np.random.normal(size=(32, 3))
        learner.fit(x, x[:, :1], epochs=8, verbose=0)
        mean, deviation = learner.predict(x, verbose=0, return_std=True)
        print(mean.shape, deviation.shape)
        ```
        """
        arguments = dict(
            batch_size=batch_size,
            verbose=verbose,
            steps=steps,
            callbacks=callbacks,
        )
        if not return_std:
            return super().predict(x, **arguments)
        self.check_samples("return_std")
        with self._predictions.asked_for("deviation"):
            return super().predict(x, **arguments)

    def posterior_predict(self, x: Any, batch_size: int | None = None) -> Any:
        """The predictions by each sample of the weights, oldest first.

        Args:
            x: As in `predict`.
            batch_size: Integer or `None`, as in `predict`.

        Returns:
            Array `(number of samples, n, ...)`, or a structure of such arrays,
            of what the model predicts: of logits, if it gives logits.

        Raises:
            ValueError: If there are no samples.

        Example:

        ```python
        import keras
        import keras_hposgld as hs
        import numpy as np

        prior = hs.regularizers.LearnableL2(0.01)
        dense = keras.layers.Dense(1, kernel_regularizer=prior)
        learner = hs.BilevelModel(keras.Sequential([dense]))
        learner.compile(
            optimizer=hs.SGLD(0.01),
            loss=hs.losses.LearnableGaussianLoss(),
            hypergradient=hs.estimators.Evidence(0, 4),
        )
        x = np.random.normal(size=(32, 3))
        learner.fit(x, x[:, :1], epochs=8, verbose=0)
        by_sample = learner.posterior_predict(x)
        low, high = np.quantile(by_sample, [0.05, 0.95], axis=0)
        ```
        """
        number = self.check_samples("posterior_predict")
        with self._predictions.asked_for("each"):
            rows = super().predict(x, batch_size=batch_size, verbose=0)
        return keras.tree.map_structure(
            lambda row: np.swapaxes(row[:, :number], 0, 1), rows
        )

    def export(
        self,
        filepath: Any = None,
        format: str = "tf_saved_model",
        *,
        posterior: Any = "auto",
        **keras_arguments: Any,
    ) -> keras.Model:
        """A plain Keras model, which loads without `keras_hposgld`.

        Args:
            filepath: Where to write it for serving, as in
                `keras.Model.export`. `None` (default): it is not written.
            format: As in `keras.Model.export`.
            posterior: Of which weights. `"average"`: a functional model that
                holds a copy of the model for each sample that `predict`
                averages over, and predicts as `predict` does. An integer: that
                one of these samples, 0 for the oldest, -1 for the newest.
                `None`: the weights as they are. `"auto"` (default):
                `"average"` where there are samples, else `None`.
            **keras_arguments: As in `keras.Model.export`.

        Returns:
            `keras.Model` with the same predictions and, unless it averages,
            the same losses. Its regularizers are Keras's own, which take one
            number: the learned strength where there is one per tensor, else
            the number that gives the same penalty now. Train on under the
            learned strengths with `refit` or with the wrapped model. A model
            that averages is not for training.

        Raises:
            ValueError: If `posterior` is not known or out of range, or asks
                for samples where there are none; if the model is to be
                averaged and its inputs are not known, as in some subclasses.
        """
        plain = posterior_export.plain_model(self, posterior)
        if filepath is not None:
            plain.export(filepath, format=format, **keras_arguments)
        return plain

    # What Keras calls to save and to load.

    def state(self) -> dict[str, list[keras.Variable]]:
        """All variables that training resumes from, by what they are."""
        return super().state() | {"posterior": list(self.posterior.weights)}

    def own_compile_arguments(self) -> dict:
        return super().own_compile_arguments() | {
            "posterior_samples": self.posterior.number
        }
