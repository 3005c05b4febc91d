"""A Keras model whose loss is quadratic in its weights, taken apart.

Its trainable weights are those of one `Dense` layer, the last one, with a
linear activation. What stands before it gives the features. The likelihood is
Gaussian, each penalty quadratic. Then the law exp(-L_T / tau) is a Gaussian
one, a `LinearLaw`, whose numbers are read off here.
"""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.hyperparameters.first_weights import is_one_linear_layer
from keras_hposgld.samplers.exact_linear import LinearLaw

DTYPE = tf.float64
# A strength may be zero in the dtype of its variable.
SMALLEST_PRECISION = 1e-30


class LinearModel:
    """The parts of such a model.

    Args:
        model: The user's `keras.Model`, built, of which `why_not_linear` has
            nothing to say.
        noise: What owns the noise, see `Hyperparameter.noise_deviation`.
    """

    def __init__(self, model: keras.Model, noise: Any):
        layer: Any = model.layers[-1]
        self.noise = noise
        self.kernel, self.bias = layer.kernel, layer.bias
        # Private to Keras, which has no public way from a tensor to its layer.
        operation, node, _ = model.outputs[0]._keras_history
        (last,) = operation._inbound_nodes[node].input_tensors
        is_sequential = isinstance(model, keras.Sequential)
        inputs = model.inputs[0] if is_sequential else model.input
        self._features = keras.Model(inputs, last)

    @property
    def weights(self) -> list:
        """The kernel, and the bias where there is one."""
        return [w for w in (self.kernel, self.bias) if w is not None]

    @property
    def num_inputs(self) -> int:
        """Of the layer, with one for a bias."""
        return self.kernel.shape[0] + (self.bias is not None)

    def features(self, x: Any) -> tf.Tensor:
        """What a weight of each input is multiplied by, `(n, d)`."""
        features = tf.cast(self._features(x, training=False), DTYPE)
        if self.bias is None:
            return features
        return tf.concat([features, tf.ones_like(features[:, :1])], 1)

    def law(self, batch: Any, curvature: list, temperature: Any) -> LinearLaw:
        """The law of the weights; an example of weight 2 is two of them.

        Args:
            batch: Tuple `(x, y)` or `(x, y, sample_weight)`, all examples.
            curvature: List of tensors that broadcast against `weights`, or
                `None`: those of their penalties.
            temperature: Float, tau.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        features = self.features(x)
        number = features.shape[0]
        (y,) = keras.tree.flatten(y)
        targets = tf.reshape(tf.cast(y, DTYPE), [number, self.kernel.shape[1]])
        if sample_weight is not None:
            (sample_weight,) = keras.tree.flatten(sample_weight)
            root = tf.sqrt(tf.reshape(tf.cast(sample_weight, DTYPE), [-1, 1]))
            features, targets = root * features, root * targets
        noise = tf.cast(self.noise.noise_deviation(), DTYPE)
        return LinearLaw(
            features,
            targets,
            self._precision(curvature, temperature),
            self._rows([_center_of(weight) for weight in self.weights]),
            # The loss is a mean over the batch.
            noise**2 * number * temperature,
            int(self.bias is not None and is_flat(self.bias)),
        )

    def count(self, batch: Any) -> tf.Tensor:
        """How many targets there are, each by its sample weight."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
        if sample_weight is None:
            number = tf.shape(keras.tree.flatten(y)[0])[0]
        else:
            number = tf.reduce_sum(keras.tree.flatten(sample_weight)[0])
        return tf.cast(number, DTYPE) * self.kernel.shape[1]

    def split(self, rows: tf.Tensor) -> list:
        """The weights from one tensor `(d, k)`, each in its own dtype."""
        num_inputs = self.kernel.shape[0]
        parts = [rows[:num_inputs], *([] if self.bias is None else [rows[-1]])]
        return [
            tf.cast(part, weight.dtype)
            for part, weight in zip(parts, self.weights, strict=True)
        ]

    def _rows(self, parts: list) -> tf.Tensor:
        width = self.kernel.shape[1]
        rows = [tf.reshape(tf.cast(part, DTYPE), [-1, width]) for part in parts]
        return tf.concat(rows, 0)

    def _precision(self, curvature: list, temperature: Any) -> tf.Tensor:
        """The prior precisions, `(1, d)`, or `(k, d)` where targets differ."""
        parts = []
        for weight, part in zip(self.weights, curvature, strict=True):
            height = 1 if len(weight.shape) == 1 else weight.shape[0]
            if is_flat(weight):
                parts.append(tf.zeros([height, 1], DTYPE))
                continue
            part = tf.cast(part, DTYPE) / temperature
            part = tf.maximum(part, SMALLEST_PRECISION)
            last = part.shape[-1] if part.shape.rank else 1
            part = tf.reshape(part, [-1, last])
            parts.append(tf.broadcast_to(part, [height, last]))
        width = max(part.shape[1] for part in parts)
        wide = [tf.broadcast_to(p, [p.shape[0], width]) for p in parts]
        return tf.transpose(tf.concat(wide, 0))


def _center_of(weight: keras.Variable) -> tf.Tensor:
    center = getattr(weight.regularizer, "center", None)
    if center is None:
        return tf.zeros(weight.shape, DTYPE)
    return tf.convert_to_tensor(center)


def is_flat(weight: keras.Variable) -> bool:
    """Whether a weight has no penalty, and so no prior."""
    regularizer: Any = weight.regularizer
    if isinstance(regularizer, keras.regularizers.L2 | keras.regularizers.L1L2):
        return float(regularizer.l2) == 0.0
    return regularizer is None


def _is_quadratic(weight: keras.Variable) -> bool:
    regularizer: Any = weight.regularizer
    if isinstance(regularizer, keras.regularizers.L1L2):
        return float(regularizer.l1) == 0.0
    if regularizer is None or isinstance(regularizer, keras.regularizers.L2):
        return True
    owner = getattr(regularizer, "owner", None)
    return getattr(owner, "is_quadratic", False)


def why_not_linear(model: keras.Model) -> tuple[str, str] | None:
    """What is to be otherwise, and what was received; `None`: nothing."""
    layers = getattr(model, "layers", [])
    last: Any = layers[-1] if layers else None
    weights = {id(weight) for weight in model.trainable_variables}
    own = [getattr(last, "kernel", None), getattr(last, "bias", None)]
    is_whole = weights == {id(w) for w in own if w is not None}
    if not (is_one_linear_layer(model) and is_whole):
        return (
            "a model whose trainable weights are those of one `Dense` layer, "
            "the last one",
            f"trainable weights {[w.path for w in model.trainable_variables]}",
        )
    if last.activation is not keras.activations.linear:
        return "a last layer without an activation", f"{last.activation!r}"
    outputs = getattr(model, "outputs", None) or []
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        return (
            "a `Sequential` or functional model with one output of shape "
            "`(batch_size, number of targets)`",
            f"outputs {outputs!r:.200}",
        )
    for weight in model.trainable_variables:
        if not _is_quadratic(weight):
            return (
                "penalties that are quadratic, such as `LearnableL2`",
                f"{weight.regularizer!r} of {weight.path!r}",
            )
    return None
