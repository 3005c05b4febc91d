"""Shows the values of hyperparameters in TensorBoard."""

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.hyperparameters.discovery import values_by_path

NUM_BUCKETS = 30
LOGS = ("outer_loss", "hypergradient_norm", "skipped_updates")


class HyperparameterTensorBoard(keras.callbacks.Callback):
    """Writes hyperparameters for TensorBoard, before training and each epoch.

    For each learned tensor: a histogram of the constrained values, one of the
    unconstrained variable (for strengths, about their logarithm), and scalars
    of minimum, median and maximum. Beside them `outer_loss`,
    `hypergradient_norm` and `skipped_updates`, where the logs have them.
    Writing does not need the package `tensorboard`; looking does.

    Args:
        log_dir: String, local or with a scheme such as `gs://` that
            TensorFlow's file systems know. The directory of
            `keras.callbacks.TensorBoard` may be the same.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    x, y = np.random.normal(size=(60, 5)), np.random.normal(size=(60, 1))
    strength = hs.regularizers.LearnableL2(1e-2)
    dense = keras.layers.Dense(1, kernel_regularizer=strength)
    learner = hs.BilevelModel(keras.Sequential([keras.Input((5,)), dense]))
    learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
    board = hs.callbacks.HyperparameterTensorBoard("logs")
    learner.fit(x, y, outer_split=0.5, callbacks=[board], verbose=0)
    ```
    """

    def __init__(self, log_dir: str):
        super().__init__()
        self.log_dir = str(log_dir)
        self._writer = None

    def on_train_begin(self, logs=None):
        self._writer = None

    def on_epoch_begin(self, epoch, logs=None):
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(
                self.log_dir, filename_suffix=".hyperparameters"
            )
            self._write(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self._write(epoch + 1, logs or {})

    def on_train_end(self, logs=None):
        self._writer.close()

    def _write(self, step, logs=()):
        owners = find_hyperparameters(self.model)
        variables = (v for o in owners for v in o.hyperparameter_variables)
        values = values_by_path(owners)
        with self._writer.as_default(step=step):
            for (path, value), raw in zip(
                values.items(), variables, strict=True
            ):
                _write_histogram(f"hyperparameters/{path}", value)
                _write_histogram(f"unconstrained/{path}", raw.numpy())
                for name in ("min", "median", "max"):
                    number = getattr(np, name)(value)
                    _write_scalar(f"hyperparameters_{name}/{path}", number)
            for name in LOGS:
                if name in logs:
                    _write_scalar(f"epoch_{name}", logs[name])
        self._writer.flush()


def _write_scalar(tag, value):
    tf.summary.write(
        tag, tf.constant(value, tf.float32), metadata=_kind("scalars")
    )


def _write_histogram(tag, values):
    # TensorBoard's format: rows of left edge, right edge and count.
    counts, edges = np.histogram(values, NUM_BUCKETS)
    buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)
    tf.summary.write(
        tag, tf.constant(buckets, tf.float64), metadata=_kind("histograms")
    )


def _kind(plugin):
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    return metadata
