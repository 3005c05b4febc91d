"""Backups of a callback beside those that Keras makes of the model."""

import tensorflow as tf


class Backup:
    """The last two states of a callback.

    Keras's `BackupAndRestore` decides which of the two counts: that of the
    step to which it has restored the model.

    Args:
        folder: String.
    """

    def __init__(self, folder: str):
        self.folder = folder

    def _manager(self, state):
        return tf.train.CheckpointManager(
            tf.train.Checkpoint(state=state), self.folder, max_to_keep=2
        )

    def save(self, step: int, state: tf.Module) -> None:
        """Writes the state that belongs to a step of the model's optimizer."""
        self._manager(state).save(step)

    def restore(self, step: int, state: tf.Module) -> bool:
        """Reads the state of a step; returns whether there was one."""
        manager = self._manager(state)
        for path in manager.checkpoints:
            if path.endswith(f"-{step}"):
                manager.checkpoint.restore(path)
                return True
        return False

    def remove(self) -> None:
        """Deletes the backups, once training has ended."""
        if tf.io.gfile.exists(self.folder):
            tf.io.gfile.rmtree(self.folder)
