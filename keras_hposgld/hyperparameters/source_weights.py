"""Learned weights of the sources that training examples come from."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_known
from keras_hposgld.hyperparameters import votes
from keras_hposgld.hyperparameters.batch_weights import BatchWeights
from keras_hposgld.hyperparameters.batch_weights import for_predictions
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import check_inside
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable

NORMALIZERS = ("softmax", "bounded")
VOTES = "votes"


@register("source_weights")
class SourceWeights(BatchWeights, keras.layers.Layer):
    """One learned weight for each source of training examples.

    For examples that come from labelling functions, annotators, domains or
    crawls. Pass it to `BilevelModel(model, example_weights=...)`, or to
    `LearnHyperparameters`. The inner loss is the weighted mean

        sum_i w(s_i) loss_i / sum_i w(s_i)

    over the examples i of a batch, from the sources s_i. Sources whose examples
    mislead the model get small weights. So do those that say nothing about the
    outer data. The weights compete with each other: only their ratios matter.

    The training data say which source an example is from:

    * `learner.fit(x, y, sources=integers)`, an array `(n,)`;
    * `learner.fit(x, votes, sources="votes")`: several sources may speak about
      an example. The targets are `(n, num_sources)`: integers, -1 where a
      source abstains, or floats, NaN where it does. The mean above is over
      votes, and the model predicts each example once;
    * batches `(inputs, targets, sources)` of a dataset or a generator.

    In a plain Keras `fit` they stand in the place of `sample_weight`, with
    `LearnHyperparameters(example_weights=...)`. There an example has one
    source; `data.expand_votes` makes an example of each vote.

    Args:
        num_sources: Integer `>= 2`.
        normalize: `"softmax"` (default) or `"bounded"`: how a weight depends
            on its variable. A softmax tells good sources from better ones, a
            bounded weight (a sigmoid) trusts all good ones alike.
        initial_weights: Array `(num_sources,)` of floats in (0, 1), the weights
            at first. `None` (default): all are equal.
        name: String.

    Call arguments:
        sources: Integer tensor.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4))
    y = x[:, :1] + 0.1 * rng.normal(size=(90, 1))
    sources = np.arange(60) % 3
    y[:60][sources == 2] = 1.0  # the third source does not know the target
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    weights = hs.SourceWeights(3)
    learner = hs.BilevelModel(model, example_weights=weights)
    learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
    learner.fit(
        *(x[:60], y[:60]),
        sources=sources,
        outer_data=(x[60:], y[60:]),
        epochs=20,
        verbose=0,
    )
    print(weights.numpy())
    ```
    """

    granularity = "source"
    keys = "sources"
    key_hint = (
        "Add the number of the source of each example. Batches of votes, "
        '(inputs, votes), need `sources="votes"`.'
    )

    def __init__(
        self,
        num_sources: int,
        normalize: str = "softmax",
        initial_weights: Any = None,
        name: str | None = None,
    ):
        super().__init__(name=name, trainable=False, dtype="float32")
        self.num_sources = check_count("num_sources", num_sources, 2)
        self.normalize = check_known("normalize", normalize, NORMALIZERS)
        self.initial_weights = None
        start = np.zeros(self.num_sources)
        if initial_weights is not None:
            weights = check_inside(
                "initial_weights", initial_weights, 1.0, (self.num_sources,)
            ) * np.ones(self.num_sources)
            self.initial_weights = weights.tolist()
            rest = 1.0 if normalize == "softmax" else 1.0 - weights
            start = np.log(weights) - np.log(rest)
        self.table = unconstrained_variable(start, "table", self.name)
        self.built = True

    def _weights(self) -> tf.Tensor:
        table = tf.convert_to_tensor(self.table)
        if self.normalize == "softmax":
            return tf.nn.softmax(table)
        return tf.sigmoid(table)

    def call(self, sources):
        return tf.gather(self._weights(), tf.cast(sources, tf.int32))

    def weigh(self, y, y_pred, keys):
        if keys is not None:
            weights = _with_mean_one(self(keys))
            return y, y_pred, for_predictions(weights, y_pred)
        self._check_predictions(y_pred)
        targets, rows, weights = self._of_votes(y)
        return targets, tf.gather(y_pred, rows), weights

    def weighted(self, x, y, keys):
        if keys is not None:
            return x, y, _with_mean_one(self(keys))
        targets, rows, weights = self._of_votes(y)
        taken = keras.tree.map_structure(lambda part: tf.gather(part, rows), x)
        return taken, targets, weights

    def _of_votes(self, y):
        """The votes, the examples that they are about, their weights."""
        found = votes.votes_in(y)
        weights = self(found.sources)
        given = tf.cast(found.is_given, weights.dtype)
        return found.targets, found.rows, _with_mean_one(weights * given)

    def _check_predictions(self, y_pred):
        parts = keras.tree.flatten(y_pred)
        if len(parts) > 1 or len(parts[0].shape) > 2:
            raise ValueError(
                '`sources="votes"` needs a model with one output (batch, '
                f"units). Received: predictions {y_pred}. Make an example of "
                "each vote, by `keras_hposgld.data.expand_votes`."
            )

    def has_votes(self, sources):
        return isinstance(sources, str) and sources == VOTES

    def keys_of(self, y, length, sources):
        if self.has_votes(sources):
            votes.check_votes(y, self.num_sources)
            return None
        rule = (
            "`sources` must be an integer for each training example, from 0 "
            f'to {self.num_sources - 1}, or "votes".'
        )
        if sources is None or isinstance(sources, str):
            raise ValueError(f"{rule} Received: sources={sources!r}.")
        numbers = np.asarray(sources)
        if numbers.shape != (length,) or numbers.dtype.kind not in "iu":
            raise ValueError(
                f"{rule} Received: sources of shape {numbers.shape} and dtype "
                f"{numbers.dtype}, for {length} examples."
            )
        if length and not 0 <= numbers.min() <= numbers.max() < (
            self.num_sources
        ):
            raise ValueError(
                f"{rule} Received: sources from {numbers.min()} to "
                f"{numbers.max()}."
            )
        return numbers

    def check_batch(self, spec, sources=None):
        if self.has_votes(sources) and len(spec) < 3:
            votes.check_votes(spec[1], self.num_sources)
        else:
            super().check_batch(spec)

    def numpy(self) -> np.ndarray:
        """The weights, `(num_sources,)`: shares that add up to 1."""
        weights = self._weights().numpy()
        return weights / weights.sum()

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        return [self.table]

    def hyperparameter_values(self) -> dict:
        return {self.table.path: self._weights()}

    def get_config(self) -> dict:
        return {
            "num_sources": self.num_sources,
            "normalize": self.normalize,
            "initial_weights": self.initial_weights,
            "name": self.name,
        }


def _with_mean_one(weights: tf.Tensor) -> tf.Tensor:
    """Weights divided by their mean over all replicas; zeros stay."""
    total = tf.reduce_sum(weights)
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        total = context.all_reduce(tf.distribute.ReduceOp.MEAN, total)
    number = tf.cast(tf.size(weights), weights.dtype)
    return tf.math.divide_no_nan(weights * number, total)
