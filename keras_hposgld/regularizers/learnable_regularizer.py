"""What the learnable regularizers have in common.

They are Keras layers, so that Keras tracks, saves, loads and clones the
strengths which they own, and they go wherever a `keras.regularizers.L2` goes.
One instance may regularize several weights: each has strengths of its own.

Keras calls a regularizer with the weight's *value*, which under a
`keras.StatelessScope` says nothing about which weight it is. So a weight's
identity is settled once, the first time its variable is seen: the variable's
`regularizer` becomes a `WeightPenalty`, the regularization of this one weight.
"""

import uuid
import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters import bijectors
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
from keras_hposgld.hyperparameters.unconstrained import check_inside
from keras_hposgld.hyperparameters.unconstrained import scope_of
from keras_hposgld.regularizers.granularity import aligned_shape
from keras_hposgld.regularizers.granularity import GRANULARITIES
from keras_hposgld.regularizers.granularity import strength_shape
from keras_hposgld.regularizers.weight_penalty import WeightPenalty

CENTERS = (None, "initial")

# Of the regularizers that were saved as one object, the last to be loaded.
_LAST_LOADED: dict[str, Any] = {}


class LearnableRegularizer(WeightHyperparameter, keras.layers.Layer):
    """A regularizer whose strengths are learned; see its subclasses.

    Args:
        initial_value: Float in `(0, max_value)`, every strength at the start.
            Defaults to `1e-3`.
        granularity: What has a strength of its own. `"parameter"` (default):
            each entry of the weight. `"input"`: each input unit or channel,
            the axis before the last (relevance of features). `"output"`: each
            output unit or channel, the last axis. `"tensor"`: the weight as a
            whole. (A kernel that Keras arranges otherwise, such as that of a
            transposed convolution or of multi-head attention, is best served
            by `"parameter"` or `"tensor"`.)
        max_value: Float, the bound of the strengths. A step of the sampler
            must be able to follow it: `learning_rate * max_value < 1`.
            Defaults to `10.0`.
        bijector: Bijector of TensorFlow Probability from an unconstrained
            variable to a positive strength, which is cut off at `max_value`
            (its gradient is not, so that the strength can come back).
            `None` (default) takes a smooth one onto `(0, max_value)`.
        center: `None` (default) pulls the weights to zero, `"initial"` to the
            value that they had when the strengths were created: for
            fine-tuning (L1-SP, L2-SP).
        name: String.

    Raises:
        ValueError: If an argument is out of range or unknown, or if the weight
            has no axis that `granularity` could mean.
    """

    powers: tuple[str, ...] = ()

    def __init__(
        self,
        initial_value: float = 1e-3,
        granularity: str = "parameter",
        max_value: float = 10.0,
        bijector: Any = None,
        center: str | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name, trainable=False)
        self.max_value = check_number(
            "max_value", max_value, zero_allowed=False
        )
        self.initial_value = float(
            check_inside("initial_value", initial_value, self.max_value)
        )
        self.granularity = check_known(
            "granularity", granularity, GRANULARITIES
        )
        self.center = check_known("center", center, CENTERS)
        self.bijector = bijector
        # Variables: Keras saves and loads what is in here.
        self.tracked: list = []
        self._penalties: list[WeightPenalty] = []
        self.is_from_file = False  # so it is known which weights it is for
        # See `load_own_variables`.
        self._identity = uuid.uuid4().hex
        self._original = lambda: None

    def build(self, input_shape=None):
        """Does nothing: variables are made for each weight as it is seen."""

    def __call__(self, weight):
        """The penalty of a weight that is seen for the first time."""
        if not isinstance(weight, keras.Variable):
            raise RuntimeError(
                f"`{self.name}` was called with a tensor before it had seen "
                "the variable, and cannot tell which weight it is. Call "
                "`keras_hposgld.find_hyperparameters(model)` first."
            )
        return self.attach(weight)(weight)

    def attach(self, weight: keras.Variable) -> WeightPenalty:
        """Gives a weight its penalty, with strengths of its own.

        Penalties that were read from a file wait for their weight: it is the
        one of the same path, else the next of the same shape.
        """
        original = self._original()
        if original is not None:
            return original.attach(weight)
        if isinstance(weight.regularizer, WeightPenalty):
            return weight.regularizer
        waiting = self._waiting_for(weight)
        waiting.sort(key=lambda penalty: penalty.path != weight.path)
        penalty = (
            waiting[0]
            if waiting
            else self._add_penalty(
                weight.path, tuple(weight.shape), weight.dtype, weight
            )
        )
        penalty.weight = weight
        penalty.path = weight.path
        weight.regularizer = penalty
        return penalty

    def waits_for(self, weight, any_path: bool = False) -> bool:
        """Whether a weight is one that a penalty from a file waits for."""
        return any(
            any_path or penalty.path == weight.path
            for penalty in self._waiting_for(weight)
        )

    def _waiting_for(self, weight):
        return [
            penalty
            for penalty in self._penalties
            if penalty.weight is None and penalty.shape == tuple(weight.shape)
        ]

    def constrain(self, variable) -> tf.Tensor:
        """The strengths that an unconstrained variable stands for."""
        variable = tf.convert_to_tensor(variable)
        if self.bijector is None:
            return self._bijector(variable.dtype.name).forward(variable)
        # A bijector returns again what it made of the very same tensor before,
        # from outside of the tape or of the loop in which it is asked.
        strengths = self.bijector.forward(tf.identity(variable))
        return bijectors.capped(strengths, self.max_value)

    def check_learning_rate(
        self, learning_rate: float, scale: float | None = 1.0
    ) -> None:
        """Refuses a sampler whose step the strongest pull would overshoot.

        Args:
            learning_rate: Float, that of the sampler.
            scale: Float, by how much a step of the sampler may exceed it.
                `None`: the step adapts to the gradient.

        Raises:
            ValueError: If the step times `max_value` is 1 or above.
        """
        if scale is None:
            return
        largest = learning_rate * scale
        if largest * self.max_value >= 1.0:
            exceeding = "" if scale == 1.0 else f", exceeded by {scale:.3g}"
            raise ValueError(
                "`learning_rate * max_value` must be below 1: an explicit "
                "step cannot follow a stronger pull, and the weights would "
                f"diverge. Received: learning_rate={learning_rate}{exceeding}, "
                f"max_value={self.max_value} (of {self.name}). Use "
                f"max_value={0.5 / largest:.3g} or a smaller learning rate."
            )

    @property
    def penalties(self) -> list[WeightPenalty]:
        """The penalties of the weights seen so far."""
        return [p for p in self._penalties if p.weight is not None]

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        return [
            variable
            for penalty in self.penalties
            for variable in penalty.strengths.values()
        ]

    @property
    def fixed_variables(self) -> list[keras.Variable]:
        return self.variables  # the centers, too

    def hyperparameter_values(self) -> dict:
        return {
            f"{penalty.path}/{power}": self.constrain(variable)
            for penalty in self.penalties
            for power, variable in penalty.strengths.items()
        }

    def aligned(self, shape: tuple) -> tuple:
        """The shape in which a weight's strengths broadcast against it."""
        return aligned_shape(self.granularity, shape)

    def _bijector(self, dtype):
        return self.bijector or bijectors.bounded(self.max_value, dtype)

    def _add_penalty(self, path, shape, dtype, weight=None):
        own_shape = strength_shape(self.granularity, shape)
        # A plain `fit` gets here while it traces. Outside of its graph there
        # are values now, not ones to be computed.
        with tf.init_scope():
            start = self._bijector(dtype).inverse(
                np.asarray(self.initial_value, dtype)
            )
            is_seen = self.center is not None and weight is not None
            center_value = weight.value.numpy() if is_seen else 0.0
        strengths = {
            power: self._add_variable(
                keras.initializers.Constant(float(start)),
                own_shape,
                dtype,
                path,
                power,
            )
            for power in self.powers
        }
        center = None
        if self.center is not None:
            center = self._add_variable(
                lambda shape, dtype: (
                    tf.fill(shape, tf.cast(0.0, dtype))
                    + tf.cast(center_value, dtype)
                ),
                shape,
                dtype,
                path,
                "center",
            )
        penalty = WeightPenalty(self, path, shape, strengths, center)
        self._penalties.append(penalty)
        self.built = True
        return penalty

    def _add_variable(self, initializer, shape, dtype, path, name):
        with scope_of(path):
            variable = keras.Variable(
                initializer,
                shape=shape,
                dtype=dtype,
                trainable=False,
                autocast=False,
                name=name,
            )
        self.tracked.append(variable)
        return variable

    def get_build_config(self):
        owner = self._original() or self
        return {
            "identity": owner._identity,
            "penalties": [
                {
                    "path": penalty.path,
                    "shape": list(penalty.shape),
                    "dtype": next(iter(penalty.strengths.values())).dtype,
                }
                for penalty in owner._penalties
            ],
        }

    def build_from_config(self, config):
        self._identity = config["identity"]
        self.is_from_file = bool(config["penalties"])
        for penalty in config["penalties"]:
            self._add_penalty(
                penalty["path"], tuple(penalty["shape"]), penalty["dtype"]
            )

    def load_own_variables(self, store):
        """Loads the strengths, as Keras asks for it.

        Keras saves an object that several layers share once, with the first of
        them, but makes one object for each when it loads. The others find
        nothing to load, and hand over to the one which did.
        """
        if self._penalties and not store.keys():
            self._original = _LAST_LOADED[self._identity]
            self._penalties.clear()
            self.tracked.clear()
            return
        if store.keys() and not self._penalties:
            raise ValueError(
                f"`{self.name}` has no strengths yet to load saved ones into. "
                "Call `keras_hposgld.find_hyperparameters(model)` before "
                "`model.load_weights(...)`."
            )
        super().load_own_variables(store)
        _LAST_LOADED[self._identity] = weakref.ref(self)

    def get_config(self) -> dict:
        return {
            "initial_value": self.initial_value,
            "granularity": self.granularity,
            "max_value": self.max_value,
            "bijector": bijectors.serialize(self.bijector),
            "center": self.center,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict) -> "LearnableRegularizer":
        config = dict(config)
        config["bijector"] = bijectors.deserialize(config["bijector"])
        return cls(**config)
