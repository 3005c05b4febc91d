"""The penalties of one regularizer, a weight each, and how files keep them."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.hyperparameters.unconstrained import scope_of
from keras_hposgld.regularizers import partners
from keras_hposgld.regularizers.granularity import strength_shape
from keras_hposgld.regularizers.weight_penalty import WeightPenalty


class Penalties:
    """What a regularizer has for each of its weights.

    Args:
        owner: `LearnableRegularizer`. Its list `tracked` is what Keras saves.
    """

    def __init__(self, owner: Any):
        self.owner = owner
        self.all: list[WeightPenalty] = []

    @property
    def alive(self) -> list[WeightPenalty]:
        """Those of weights that there are."""
        return [p for p in self.all if p.weight is not None]

    @property
    def waiting(self) -> list[WeightPenalty]:
        """Those from a file, whose weights have not yet been seen."""
        return [p for p in self.all if p.is_waiting]

    def bind(
        self, weight: keras.Variable, address: str | None, known: set[str]
    ) -> WeightPenalty:
        """The penalty of a weight, one from a file if it is for that weight.

        Args:
            weight: Variable without a penalty.
            address: Its place in the model, `None` if nobody has said.
            known: The addresses of all weights of that model.

        Raises:
            ValueError: If a file has strengths, and it cannot be told whether
                they are those of the weight.
        """
        self.drop_dead()
        if address is None:
            penalty = partners.by_path(self.waiting, weight)
        else:
            penalty = partners.by_address(self.waiting, address, known)
        if penalty is None:
            penalty = self.add(
                weight.path, tuple(weight.shape), weight.dtype, weight
            )
        penalty.bind(weight, address)
        return penalty

    def add(
        self, path, shape, dtype, weight=None, address=None
    ) -> WeightPenalty:
        """Makes the strengths of a weight, and its center."""
        owner = self.owner
        # A plain `fit` gets here while it traces. A variable that is made
        # outside of its graph has a value also if the tracing fails.
        with tf.init_scope():
            start = owner.unconstrain(owner.initial_value, dtype)
            own_shape = strength_shape(owner.granularity, shape)
            strengths = {
                power: self._variable(
                    np.full(own_shape, start, dtype), path, power
                )
                for power in owner.powers
            }
            center = None
            if owner.center is not None:
                value = np.zeros(shape) if weight is None else weight.numpy()
                center = self._variable(
                    np.asarray(value, dtype), path, "center"
                )
        penalty = WeightPenalty(owner, path, shape, strengths, center, address)
        self.all.append(penalty)
        owner.built = True
        return penalty

    def add_scale(self, penalty: WeightPenalty, value: float) -> None:
        """Makes the common scale of the strengths of a weight."""
        penalty.scale = self._beside(penalty, value, "scale")

    def add_mixture(self, penalty: WeightPenalty, value: Any) -> None:
        """Makes the curvatures of a mixture, one for each entry."""
        value = np.broadcast_to(value, penalty.shape)
        penalty.mixture = self._beside(penalty, value, "mixture")

    def _beside(self, penalty: WeightPenalty, value: Any, name: str) -> Any:
        dtype = next(iter(penalty.strengths.values())).dtype
        with tf.init_scope():
            return self._variable(np.asarray(value, dtype), penalty.path, name)

    def _variable(self, value, path, name):
        *layer, weight_name = path.split("/")
        # Not `kernel/l2`: an `.h5` file has the kernel itself in that place.
        with scope_of("/".join(layer)):
            variable = keras.Variable(
                lambda shape, dtype: tf.convert_to_tensor(value, dtype),
                shape=value.shape,
                dtype=value.dtype.name,
                trainable=False,
                autocast=False,
                name=f"{weight_name}_{name}",
            )
        self.owner.tracked.append(variable)
        return variable

    def drop_dead(self) -> None:
        """Forgets weights that are gone, and the strengths they had."""
        kept = [p for p in self.all if p.is_waiting or p.weight is not None]
        if len(kept) == len(self.all):
            return
        self.all = kept
        variables = {id(v) for penalty in kept for v in penalty.variables}
        tracked = self.owner.tracked
        for position in reversed(range(len(tracked))):
            if id(tracked[position]) not in variables:
                del tracked[position]

    def log_normalizer(self, temperature) -> tf.Tensor | None:
        """The sum over the weights that there are."""
        total = tf.zeros([], tf.float32)
        for penalty in self.alive:
            part = penalty.log_normalizer(temperature)
            if part is None:
                return None
            if part.dtype.size > total.dtype.size:
                total = tf.cast(total, part.dtype)
            total += tf.cast(part, total.dtype)
        return total

    # Files.

    def described(self) -> list[dict]:
        """What the config of the regularizer says of them."""
        self.drop_dead()
        return partners.described(self.all)

    def add_described(self, entry: dict) -> WeightPenalty:
        """Makes a penalty that waits for the weight of such an entry."""
        penalty = self.add(
            entry["path"],
            tuple(entry["shape"]),
            entry["dtype"],
            address=entry.get("address"),
        )
        self._add_others(penalty, entry)
        return penalty

    def _add_others(self, penalty: WeightPenalty, entry: dict) -> None:
        """Makes what an entry has beside strengths, if it is not there."""
        if entry.get("has_scale") and penalty.scale is None:
            self.add_scale(penalty, 1.0)
        if entry.get("has_mixture") and penalty.mixture is None:
            self.add_mixture(penalty, 0.0)

    def write(self, store) -> None:
        """Writes the strengths into a store of Keras's."""
        self.drop_dead()
        if self.all:
            partners.write(store, self.all)

    def read(self, store, entries: list[dict]) -> None:
        """Reads them, those of a weight that is not yet seen as well.

        Raises:
            ValueError: If the store lacks the strengths of a weight.
        """
        number = 0
        loaded = []
        for entry in entries:
            penalty = partners.of_entry(self.all, entry)
            loaded.append(penalty or self.add_described(entry))
            self._add_others(loaded[-1], entry)
            for variable in loaded[-1].variables:
                variable.assign(store[str(number)])
                number += 1
        partners.check_loaded(self.alive, loaded)
