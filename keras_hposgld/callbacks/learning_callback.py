"""What a callback that learns has beside what Keras calls."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.callbacks.backup import Backup
from keras_hposgld.callbacks.course import Course
from keras_hposgld.hyperparameters.shown import ShowsHyperparameters
from keras_hposgld.training.step_of_fit import plain


class LearningCallback(ShowsHyperparameters, keras.callbacks.Callback):
    """Base of `LearnHyperparameters`: what it shows, and its backups."""

    backup_dir: str | None
    _kind: Any
    _chains: Any
    _num_batches: int
    _course: Course

    @property
    def chain(self):
        """Where the chains run: `"training"` or `"apart"`."""
        return self._kind.name

    @property
    def every(self):
        """Batches from one end of a chain to the next."""
        return self._chains.every

    @property
    def warmup_batches(self):
        """How many batches there are before any hyperparameter moves."""
        return self._chains.warmup_batches

    @property
    def sampler(self):
        """The sampler of the chains."""
        return self._chains.sampler

    @property
    def outer_level(self):
        """The optimizer of the hyperparameters, and all that goes with it."""
        return self._chains.outer_level

    @property
    def recent(self):
        """The examples that `fit` trained on last, for chains apart."""
        return self._chains.recent

    # Backups.

    @property
    def _step(self):
        return int(plain(self.model.optimizer).iterations.numpy())

    def _state(self):
        state = self._chains.state(self.model, self.find_hyperparameters())
        state.num_batches = tf.Variable(self._num_batches, dtype=tf.int64)
        return state

    def _back_up(self):
        if self.backup_dir is not None:
            Backup(self.backup_dir).save(self._step, self._state())

    def _restore(self):
        if self.backup_dir is None or self._step == 0:
            return False
        state = self._state()
        is_restored = Backup(self.backup_dir).restore(self._step, state)
        if is_restored:
            self._num_batches = int(state.num_batches)
        return is_restored
