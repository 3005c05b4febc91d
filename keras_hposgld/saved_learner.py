"""How a learner is saved and loaded, for training to go on exactly.

Keras saves the wrapped model, the learned strengths, both optimizers and the
counters by itself, as they hang on attributes. What is added here: the
arguments of `compile`, and the state of random generators.
"""

import keras
import tensorflow as tf

from keras_hposgld.hyperparameters.hyperparameter import all_layers
from keras_hposgld.hyperparameters.hyperparameter import find_hyperparameters
from keras_hposgld.weight_copies import WeightCopies


def random_states(model: keras.Model) -> list[keras.Variable]:
    """Counters of dropout and the like, which Keras does not save."""
    weights = {id(weight) for weight in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def _numbered(name, variables):
    return {f"{name}_{n}": variable for n, variable in enumerate(variables)}


class SavedLearner(keras.Model):
    """The part of a learner that Keras's saving calls."""

    def track_for_checkpoints(self) -> None:
        """Hangs on an attribute what `tf.train.Checkpoint` would miss.

        It follows attributes and lists of TensorFlow's, not those of Keras.
        """
        state = tf.Module()
        for name, variables in (
            ("weights", self.weights),
            ("random_states", random_states(self.model)),
            *(
                (layer.name, layer.weights)
                for layer in all_layers(self)
                if isinstance(layer, WeightCopies)
            ),
        ):
            setattr(state, name, [variable.value for variable in variables])
        self._checkpointed_state = state

    @property
    def _loss_variables(self):
        """Of learned losses, which Keras saves by their config alone."""
        return [
            variable
            for owner in find_hyperparameters(self)
            if isinstance(owner, keras.losses.Loss)
            for variable in owner.hyperparameter_variables
        ]

    def _unsaved(self):
        """What Keras would not save, by name."""
        return {
            **_numbered("random_state", random_states(self.model)),
            **_numbered("loss", self._loss_variables),
        }

    def save_own_variables(self, store) -> None:
        super().save_own_variables(store)
        for name, variable in self._unsaved().items():
            store[name] = variable.numpy()

    def load_own_variables(self, store) -> None:
        values = {key: store[key] for key in store.keys()}
        for name, variable in self._unsaved().items():
            variable.assign(values.pop(name))
        if not self.compiled:  # so there is no loss to load into
            values = {k: v for k, v in values.items() if k[:5] != "loss_"}
        super().load_own_variables(values)

    def get_config(self) -> dict:
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects=None) -> "SavedLearner":
        return cls(
            **{
                key: keras.saving.deserialize_keras_object(
                    value, custom_objects=custom_objects
                )
                for key, value in config.items()
            }
        )

    def get_compile_config(self) -> dict:
        if not self.compiled:
            return super().get_compile_config()
        return super().get_compile_config() | (
            keras.saving.serialize_keras_object(self.own_compile_arguments())
        )

    def compile_from_config(self, config: dict) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
