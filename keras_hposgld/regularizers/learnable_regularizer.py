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
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.hyperparameters import bijectors
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
from keras_hposgld.hyperparameters.own_rules import Beginning
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.hyperparameters.unconstrained import check_inside
from keras_hposgld.regularizers import mixture
from keras_hposgld.regularizers import partners
from keras_hposgld.regularizers import strength_updates
from keras_hposgld.regularizers.copies import Copies
from keras_hposgld.regularizers.granularity import aligned_shape
from keras_hposgld.regularizers.granularity import GRANULARITIES
from keras_hposgld.regularizers.penalties import Penalties
from keras_hposgld.regularizers.saved_strengths import SavedStrengths
from keras_hposgld.regularizers.shrinkage import prior_gradient
from keras_hposgld.regularizers.shrinkage import SHRINKAGE
from keras_hposgld.regularizers.step_check import check_step
from keras_hposgld.regularizers.weight_penalty import WeightPenalty

CENTERS = (None, "initial")


class Default(float):
    """A number that nobody asked for, which the evidence may choose anew."""


INITIAL_VALUE = Default(1e-3)
MAX_VALUE = Default(10.0)


class LearnableRegularizer(
    SavedStrengths,
    WeightHyperparameter,
    keras.layers.Layer,
    keras.regularizers.Regularizer,
):
    """A regularizer whose strengths are learned; see its subclasses.

    Args:
        initial_value: Float in `(0, max_value)`, every strength at the start.
            Defaults to `1e-3`; with the evidence, to a strength at which the
            outputs of a layer are of order one.
        granularity: What has a strength of its own. `"parameter"` (default):
            each entry of the weight. `"input"`: each input unit or channel,
            the axis before the last (relevance of features). `"output"`: each
            output unit or channel, the last axis. `"tensor"`: the weight as a
            whole. `"auto"`: `"input"`, or `"tensor"` where the weight has one
            axis, with `shrinkage=0.5`. (A kernel that Keras arranges
            otherwise, such as that of a transposed convolution or of
            multi-head attention, is best served by `"parameter"` or
            `"tensor"`.)
        max_value: Float, the bound of the strengths. A step of the sampler
            must be able to follow it: `learning_rate * max_value < 1`.
            Defaults to `10.0`; with the evidence, to `1e6`.
        bijector: Bijector of TensorFlow Probability from an unconstrained
            variable to a positive strength, which is cut off at `max_value`
            (its gradient is not, so that the strength can come back).
            `None` (default) takes a smooth one onto `(0, max_value)`.
        center: `None` (default) pulls the weights to zero, `"initial"` to the
            value that they had when the strengths were created: for
            fine-tuning (L1-SP, L2-SP).
        shrinkage: Float `>= 0`, how strongly the strengths of a weight are
            pulled to each other: the prior of their logarithms around their
            mean is Laplace's, of scale `1 / shrinkage`. It counts as much as it
            should beside so many outer examples as there are, so that no
            strength moves for what may be chance. `None` (default): `0.5` for
            `granularity="auto"`, else `0.0`.
        name: String.

    Raises:
        ValueError: If an argument is out of range or unknown, or if the weight
            has no axis that `granularity` could mean.
    """

    powers: tuple[str, ...] = ()

    def __init__(
        self,
        initial_value: float = INITIAL_VALUE,
        granularity: str = "parameter",
        max_value: float = MAX_VALUE,
        bijector: Any = None,
        center: str | None = None,
        shrinkage: float | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name, trainable=False)
        self.starts_by_rule = isinstance(initial_value, Default)
        self.has_default_bound = isinstance(max_value, Default)
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
        if shrinkage is None:
            shrinkage = SHRINKAGE if granularity == "auto" else 0.0
        self.shrinkage = check_number("shrinkage", shrinkage)
        # Variables: Keras saves and loads what is in here.
        self.tracked: list = []
        self._kept = Penalties(self)
        self.is_from_file = False  # so it is known which weights it is for
        self._identity = uuid.uuid4().hex
        self._copies = Copies(self)

    def build(self, input_shape=None):
        """Does nothing: variables are made for each weight as it is seen."""

    def __call__(self, weight):
        """The penalty of a weight that is seen for the first time."""
        if not isinstance(weight, keras.Variable):
            raise RuntimeError(
                f"`{self.name}` regularizes weights: it was called with a "
                "tensor, and cannot tell of which weight. Pass it as "
                "`kernel_regularizer`, not as `activity_regularizer`; for a "
                "weight within a `StatelessScope`, call "
                "`keras_hposgld.find_hyperparameters(model)` first."
            )
        return self.attach(weight)(weight)

    def attach(
        self, weight: keras.Variable, address: str | None = None, known=None
    ) -> WeightPenalty:
        """Gives a weight its penalty, with strengths of its own.

        Those that were read from a file are found by the address of the weight
        or, where nobody has said it, by its path.

        Args:
            weight: Variable.
            address: Its place in the model, where known.
            known: Set of the addresses of all weights of that model.

        Raises:
            ValueError: If a file has strengths, and it cannot be told whether
                they are those of the weight.
        """
        first = self._copies.first
        first._copies.are_complete = True
        if isinstance(weight.regularizer, WeightPenalty):
            return weight.regularizer
        return first._kept.bind(weight, address, known or {address})

    def for_model(self, weights: list) -> "LearnableRegularizer":
        """This regularizer, or a fresh copy if it serves another model by now.

        Of copies that Keras made of one object as it loaded a model, the first.
        """
        first = self._copies.first
        own = {id(weight) for weight in weights}
        if all(id(penalty.weight) in own for penalty in first.penalties):
            return first
        return type(first).from_config(first.get_config())

    def waits_for(self, weight: keras.Variable, address: str) -> bool:
        """Whether a weight is one that a penalty from a file waits for."""
        return partners.is_awaited(self._kept.waiting, weight, address)

    def constrain(self, variable) -> tf.Tensor:
        """The strengths that an unconstrained variable stands for."""
        variable = tf.convert_to_tensor(variable)
        if self.bijector is None:
            bounded = bijectors.bounded(self.max_value, variable.dtype.name)
            return bounded.forward(variable)
        # A bijector returns again what it made of the very same tensor before,
        # from outside of the tape or of the loop in which it is asked.
        strengths = self.bijector.forward(tf.identity(variable))
        return bijectors.capped(strengths, self.max_value)

    def unconstrain(self, strength: float, dtype: str) -> tf.Tensor:
        """The number for which `constrain` gives a strength."""
        bijector = self.bijector or bijectors.bounded(self.max_value, dtype)
        return bijector.inverse(np.asarray(strength, dtype))

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
        if scale is not None:
            check_step(self, learning_rate, scale)

    @property
    def penalties(self) -> list[WeightPenalty]:
        """The penalties of the weights that there are."""
        return self._kept.alive

    @property
    def hyperparameter_variables(self) -> list[keras.Variable]:
        return [v for p in self.penalties for v in p.strengths.values()]

    @property
    def fixed_variables(self) -> list[keras.Variable]:
        # Centers and scales, too, in an order that no file changes.
        return [v for penalty in self._kept.all for v in penalty.variables]

    def hyperparameter_values(self) -> dict:
        return {
            f"{penalty.path}/{power}": self.constrain(variable)
            for penalty in self.penalties
            for power, variable in penalty.strengths.items()
        }

    def prior_gradient(self, share_seen: Callable) -> list | None:
        if not self.shrinkage:
            return None
        return [
            prior_gradient(penalty, power, self.shrinkage, share_seen)
            for penalty in self.penalties
            for power in penalty.strengths
        ]

    def log_normalizer(self, temperature: float) -> tf.Tensor | None:
        return self._kept.log_normalizer(temperature)

    def begin_rule(self, beginning: Beginning) -> None:
        strength_updates.begin(self, beginning)
        mixture.begin(self, beginning)

    def renewed(self, end: ChainEnd) -> list | None:
        return strength_updates.renewed(self, end)

    def draw_latents(self, end: ChainEnd) -> None:
        mixture.draw(self, end)

    def add_scale(self, penalty: WeightPenalty, value: float) -> None:
        """Makes the common scale of a weight's strengths, to be drawn."""
        self._kept.add_scale(penalty, value)

    def add_mixture(self, penalty: WeightPenalty, value: Any) -> None:
        """Makes the curvatures of a weight's mixture, to be drawn."""
        self._kept.add_mixture(penalty, value)

    def saved_apart(self) -> list[tuple[str, keras.Variable]]:
        """The strengths by the places of their weights."""
        return [
            (f"{penalty.address or penalty.path}".replace("/", "."), variable)
            for penalty in self.penalties
            for variable in penalty.variables
        ]

    def aligned(self, shape: tuple) -> tuple:
        """The shape in which a weight's strengths broadcast against it."""
        return aligned_shape(self.granularity, shape)

    def get_config(self) -> dict:
        is_default = self.has_default_bound and self.max_value == MAX_VALUE
        return {
            "initial_value": self.initial_value,
            "granularity": self.granularity,
            "max_value": self.max_value,
            "bijector": bijectors.serialize(self.bijector),
            "center": self.center,
            "shrinkage": self.shrinkage,
            "name": self.name,
            "defaults": ["initial_value"] * self.starts_by_rule
            + ["max_value"] * is_default,
        }

    @classmethod
    def from_config(cls, config: dict) -> "LearnableRegularizer":
        config = dict(config)
        config["bijector"] = bijectors.deserialize(config["bijector"])
        for name in config.pop("defaults", ()):
            config[name] = Default(config[name])
        return cls(**config)
