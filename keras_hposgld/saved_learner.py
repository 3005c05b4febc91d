"""How a `BilevelModel` is saved and loaded, for training to go on exactly.

Keras saves the wrapped model, the learned strengths, both optimizers and the
counters by itself, as they hang on attributes. What is added here: the
arguments of `compile`, and the state of random generators.
"""

import keras
import tensorflow as tf


def random_states(model: keras.Model) -> list[keras.Variable]:
    """Counters of dropout and the like, which Keras does not save."""
    weights = {id(weight) for weight in model.weights}
    return [v for v in model.variables if id(v) not in weights]


class SavedLearner(keras.Model):
    """The part of `BilevelModel` that Keras's saving calls."""

    def track_for_checkpoints(self) -> None:
        """Hangs on an attribute what `tf.train.Checkpoint` would miss.

        It follows attributes and lists of TensorFlow's, not those of Keras.
        """
        state = tf.Module()
        for name, variables in (
            ("weights", self.weights),
            ("random_states", random_states(self.model)),
            ("memory", self.outer_level.memory.weights),
            ("starting_weights", self.starting_weights.weights),
        ):
            setattr(state, name, [variable.value for variable in variables])
        self._checkpointed_state = state

    def save_own_variables(self, store) -> None:
        super().save_own_variables(store)
        for position, state in enumerate(random_states(self.model)):
            store[f"random_state_{position}"] = state.numpy()

    def load_own_variables(self, store) -> None:
        values = {key: store[key] for key in store.keys()}
        for position, state in enumerate(random_states(self.model)):
            state.assign(values.pop(f"random_state_{position}"))
        super().load_own_variables(values)

    def get_config(self) -> dict:
        return {
            "model": keras.saving.serialize_keras_object(self.model),
            "regularizer": keras.saving.serialize_keras_object(
                self.regularizer
            ),
            "seed": self.seed,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects=None) -> "SavedLearner":
        config = dict(config)
        for key in ("model", "regularizer"):
            config[key] = keras.saving.deserialize_keras_object(
                config[key], custom_objects=custom_objects
            )
        return cls(**config)

    def get_compile_config(self) -> dict:
        if not self.compiled:
            return super().get_compile_config()
        own = {
            "hypergradient": self.hypergradient,
            "hyper_optimizer": self.hyper_optimizer,
            "outer_loss": self.outer_level.outer_loss,
            "start": self.start,
            "layer_state": self.outer_level.layer_state,
            "warmup_steps": self.outer_level.warmup_steps,
            "max_skipped_updates": self.outer_level.guard.max_skipped_updates,
        }
        return super().get_compile_config() | (
            keras.saving.serialize_keras_object(own)
        )

    def compile_from_config(self, config: dict) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))
