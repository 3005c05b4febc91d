"""Tells whether the chains are long enough, in the logs of `fit`."""

from typing import Any

import keras

from keras_hposgld.core.chain_statistics import chain_statistics


class ChainDiagnostics(keras.callbacks.Callback):
    """Adds diagnostics of the chains to the logs of each epoch.

    * `effective_sample_size`: how many independent samples the samples of a
      chain are worth, by the outer loss along it; mean over the chains.
    * `r_hat`: the outer loss of a chain's first half of samples against that
      of its second half: near 1 where the chain has settled. Mean over the
      chains. It does not tell of wells that no chain has visited.
    * `standard_error`: the Monte Carlo error of the hypergradient's length,
      by batch means; mean over the chains. Compare it with
      `hypergradient_norm`.

    With few samples a chain these are rough; with less than 4 they are refused.

    Args:
        learning: The `LearnHyperparameters` callback whose chains are meant.
            `None` (default): those of the `BilevelModel` that is trained.

    Raises:
        ValueError: When training begins: if the estimator has less than 4
            samples a chain or no outer losses, as `Evidence`; or if there is
            nothing that runs chains.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    x, y = np.random.normal(size=(60, 5)), np.random.normal(size=(60, 1))
    strength = hs.regularizers.LearnableL2(1e-2)
    dense = keras.layers.Dense(1, kernel_regularizer=strength)
    learner = hs.BilevelModel(keras.Sequential([keras.Input((5,)), dense]))
    learner.compile(optimizer=hs.SGLD(0.05, temperature=1e-3), loss="mse")
    history = learner.fit(
        x,
        y,
        outer_split=0.5,
        callbacks=[hs.callbacks.ChainDiagnostics()],
        verbose=0,
    )
    print(history.history["effective_sample_size"])
    ```
    """

    def __init__(self, learning: Any = None):
        super().__init__()
        self.learning = learning
        self._metrics: list = []

    def on_train_begin(self, logs=None):
        source = self.model if self.learning is None else self.learning
        outer_level = getattr(source, "outer_level", None)
        if outer_level is None:
            raise ValueError(
                "`learning` must be given where the model is no "
                "`BilevelModel`. Received: learning=None and "
                f"{self.model!r}. Pass the `LearnHyperparameters` callback."
            )
        if not outer_level.estimator.needs_outer:
            raise ValueError(
                "`ChainDiagnostics` looks at the outer losses of a chain. "
                f"Received: {outer_level.estimator!r}, which has none. Leave "
                "the callback out: `fit` says at its end where that chain has "
                "not mixed, and `diagnostics.two_chains` compares two."
            )
        num_samples = getattr(outer_level.estimator, "num_samples", 0)
        if num_samples < 4:
            raise ValueError(
                "`ChainDiagnostics` needs an estimator with at least 4 "
                f"samples a chain. Received: {outer_level.estimator!r}."
            )
        if not self._metrics:
            with self.model.distribute_strategy.scope():
                self._metrics = [
                    keras.metrics.Mean(name=name)
                    for name in (
                        "effective_sample_size",
                        "r_hat",
                        "standard_error",
                    )
                ]
        self._outer_level = outer_level
        if self._observe in outer_level.observers:  # of a fit broken off
            outer_level.observers.remove(self._observe)
        outer_level.observers.append(self._observe)
        self._retrace()

    def _observe(self, estimate):
        size, reduction = chain_statistics(estimate.outer_losses[:, None])
        values = (size[0], reduction, estimate.standard_error)
        for metric, value in zip(self._metrics, values, strict=True):
            metric.update_state(value)

    def _retrace(self):
        if self.learning is None:
            self.model.make_train_function(force=True)

    def on_epoch_begin(self, epoch, logs=None):
        for metric in self._metrics:
            metric.reset_state()

    def on_epoch_end(self, epoch, logs=None):
        for metric in self._metrics:
            logs[metric.name] = float(metric.result())

    def on_train_end(self, logs=None):
        self._outer_level.observers.remove(self._observe)
        self._retrace()
