"""Keeps the values of hyperparameters over the course of training."""

import io

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.hyperparameters.discovery import values_by_path


class HyperparameterHistory(keras.callbacks.Callback):
    """Remembers the constrained values before training and after each epoch.

    It works with `BilevelModel`, and beside `LearnHyperparameters` in the
    `fit` of a plain model (after it in the list, if that one attaches the
    regularizers).

    Args:
        path: String: a NumPy file (`.npz`), written after each epoch, local or
            with a scheme that `tf.io.gfile` knows. It has an array
            `(num_records, ...)` for each path and `epochs`. A `fit` that
            starts at a later epoch continues it. `None` (default): no file.
            Every record is kept in memory: for millions of hyperparameters
            `HyperparameterTensorBoard` is the better choice.

    Attributes:
        epochs: List of integers, the number of epochs trained at each record.
        values: Dictionary from path to a list of NumPy arrays.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    x, y = np.random.normal(size=(60, 5)), np.random.normal(size=(60, 1))
    strength = hs.regularizers.LearnableL2(1e-2, granularity="input")
    dense = keras.layers.Dense(1, kernel_regularizer=strength)
    learner = hs.BilevelModel(keras.Sequential([keras.Input((5,)), dense]))
    learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
    course = hs.callbacks.HyperparameterHistory("course.npz")
    learner.fit(x, y, outer_split=0.5, epochs=3, callbacks=[course], verbose=0)
    assert course.epochs == [0, 1, 2, 3]
    (strengths,) = course.values.values()
    assert np.stack(strengths).shape == (4, 5)
    ```
    """

    def __init__(self, path: str | None = None):
        super().__init__()
        self.path = path
        self.epochs: list[int] = []
        self.values: dict[str, list] = {}

    def on_train_begin(self, logs=None):
        self.epochs, self.values = [], {}
        self._is_open = False

    def on_epoch_begin(self, epoch, logs=None):
        # Not when training begins: by now a backup has been restored.
        if self._is_open:
            return
        self._is_open = True
        if epoch > 0 and self.path and tf.io.gfile.exists(self.path):
            self._read(epoch)
        else:
            self._record(epoch)

    def on_epoch_end(self, epoch, logs=None):
        self._record(epoch + 1)
        if self.path:
            self._write()

    def _record(self, epochs):
        self.epochs.append(epochs)
        owners = find_hyperparameters(self.model)
        for path, value in values_by_path(owners).items():
            self.values.setdefault(path, []).append(value)

    def _read(self, epoch):
        with tf.io.gfile.GFile(self.path, "rb") as file:
            content = io.BytesIO(file.read())
        with np.load(content) as saved:
            arrays = dict(saved)
        epochs = arrays.pop("epochs")
        kept = epochs <= epoch
        self.epochs = epochs[kept].tolist()
        self.values = {path: list(a[kept]) for path, a in arrays.items()}

    def _write(self):
        arrays = {path: np.stack(rows) for path, rows in self.values.items()}
        content = io.BytesIO()
        np.savez_compressed(content, epochs=np.array(self.epochs), **arrays)
        # A file of its own first: a run that is killed leaves a whole one.
        with tf.io.gfile.GFile(f"{self.path}.new", "wb") as file:
            file.write(content.getvalue())
        tf.io.gfile.rename(f"{self.path}.new", self.path, overwrite=True)
