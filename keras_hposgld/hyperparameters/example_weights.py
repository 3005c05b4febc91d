"""Learned weights of single training examples."""

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters.batch_weights import BatchWeights
from keras_hposgld.hyperparameters.batch_weights import for_predictions
from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.hyperparameters.unconstrained import bounded_start
from keras_hposgld.hyperparameters.unconstrained import bounded_value
from keras_hposgld.hyperparameters.unconstrained import unconstrained_variable


@register("example_weights")
class ExampleWeights(BatchWeights, keras.layers.Layer):
    """A table with one learned weight for each training example.

    Pass it to `BilevelModel(model, example_weights=...)`: the weights take the
    place of Keras's `sample_weight` in the inner objective, drawn into each
    batch by the index of its examples. Those which mislead the model get small
    weights, so that the table finds wrong labels (data hyper-cleaning).

    For a plain Keras `fit` the learned weights are
    `sample_weight=weights.numpy()`.

    Args:
        num_examples: Integer `>= 1`.
        initial_value: Float in `(0, max_value)`, each weight at first.
            Defaults to `0.5`.
        max_value: Float. Defaults to `1.0`.
        name: String.

    Call arguments:
        indices: Integer tensor: positions of examples in the training data.

    Raises:
        ValueError: If a number is out of range.

    Reference:
        Franceschi, Donini, Frasconi and Pontil, "Forward and Reverse
        Gradient-Based Hyperparameter Optimization", ICML 2017, section 5.1.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    x, y = np.random.normal(size=(80, 5)), np.random.normal(size=(80, 1))
    y[:10] += 5.0  # wrong
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    weights = hs.ExampleWeights(40)
    learner = hs.BilevelModel(model, example_weights=weights)
    learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
    learner.fit(
        x[:40], y[:40], outer_data=(x[40:], y[40:]), epochs=5, verbose=0
    )
    print(weights.numpy()[:10].mean(), weights.numpy()[10:].mean())
    ```
    """

    granularity = "example"

    def __init__(
        self,
        num_examples: int,
        initial_value: float = 0.5,
        max_value: float = 1.0,
        name: str | None = None,
    ):
        super().__init__(name=name, trainable=False, dtype="float32")
        self.num_examples = check_count("num_examples", num_examples, 1)
        self.max_value = check_number(
            "max_value", max_value, zero_allowed=False
        )
        start = bounded_start("initial_value", initial_value, self.max_value)
        self.initial_value = float(initial_value)
        self.table = unconstrained_variable(
            np.full(self.num_examples, start), "table", self.name
        )
        self.built = True

    def call(self, indices):
        # Drawn before it is constrained, so the work is that of the batch.
        drawn = tf.gather(
            tf.convert_to_tensor(self.table), tf.cast(indices, tf.int32)
        )
        return bounded_value(drawn, self.max_value)

    def keys_of(self, y, length, sources):
        """The positions of the examples, which are those of the table."""
        if sources is not None:
            raise ValueError(
                "`sources` needs `example_weights=SourceWeights(...)`. "
                f"Received: example_weights={self!r}."
            )
        if length != self.num_examples:
            raise ValueError(
                "`example_weights` must have one weight for each training "
                f"example. Received: {self.num_examples} weights and {length} "
                f"examples. Use `ExampleWeights({length})`. To a `refit` on "
                "them and others, in this order, pass `sample_weight=numpy"
                ".concatenate([weights.numpy(), numpy.ones(number_of_others)])"
                "`."
            )
        return np.arange(length)

    def weigh(self, y, y_pred, keys):
        return y, y_pred, for_predictions(self(keys), y_pred)

    def weighted(self, x, y, keys):
        return x, y, self(keys)

    def numpy(self) -> np.ndarray:
        """All weights, `(num_examples,)`."""
        return bounded_value(self.table, self.max_value).numpy()

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        return [self.table]

    def hyperparameter_values(self) -> dict:
        return {self.table.path: bounded_value(self.table, self.max_value)}

    def get_config(self) -> dict:
        return {
            "num_examples": self.num_examples,
            "initial_value": self.initial_value,
            "max_value": self.max_value,
            "name": self.name,
        }
