"""What is measured of a layer: four comparisons, one row of the table."""

import contextlib
import pathlib
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import layer_models
import numpy as np
import tensorflow as tf
from layer_rows import Row

import keras_hposgld as hs
from keras_hposgld.core.missing_derivatives import MissingSecondDerivativeError

RATE = 0.2
BATCH, STEPS = 4, 3
HYPER_RATE = 100.0  # long steps, of which float32 keeps more digits

# Of the central differences, in unconstrained strengths.
DISTANCE = {"float64": 1e-4, "float32": 0.1}


@contextlib.contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Makes new layers compute in a precision."""
    floatx, policy = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_floatx(floatx)
        keras.config.set_dtype_policy(policy)


class Trial:
    """A model, its data, and the state that each measurement starts from.

    Args:
        name: String, the layer's.
    """

    def __init__(self, name: str):
        keras.utils.set_random_seed(3)
        self.rng = np.random.default_rng(3)
        self.dtype = layer_models.dtype_of(name)
        self.model = layer_models.make_model(name)
        self.inner = self._data(name, BATCH * STEPS)
        self.outer = self._data(name, 6)
        self.learner = hs.BilevelModel(
            self.model,
            regularizer=hs.regularizers.LearnableL2(0.1, max_value=2.0),
            filter=lambda weight: True,
            seed=5,
        )
        for strength in self.learner.hyperparameters:
            spread = self.rng.normal(scale=0.3, size=strength.shape)
            strength.assign(strength + spread.astype(self.dtype))
        # A regularizer that a learner attaches is a layer of the learner.
        self.variables = [*self.model.variables, *self.learner.hyperparameters]
        self.start = [v.numpy() for v in self.variables]

    def _data(self, name, number):
        x = layer_models.inputs_for(name, number, self.rng)
        y = self.rng.normal(size=(number, 1)).astype(self.dtype)
        return (tuple(x) if len(x) > 1 else x[0]), y

    def compile_learner(self, estimator: Any, **arguments: Any) -> None:
        """Has the learner estimate hypergradients so from now on."""
        self.learner.compile(
            optimizer=hs.SGLD(RATE),
            loss="mse",
            hypergradient=estimator,
            hyper_optimizer=keras.optimizers.SGD(HYPER_RATE),
            **arguments,
        )

    def compile_model(self) -> None:
        """Has the model trained by Keras alone, with the same sampler."""
        self.model.compile(hs.SGLD(RATE), "mse", jit_compile=False)

    def batches(self, data: Any, number: int | None = None) -> tf.data.Dataset:
        """The first batches of data in their order, or all in one."""
        size = BATCH if number else len(data[1])
        options = tf.data.Options()
        options.autotune.enabled = False
        dataset = tf.data.Dataset.from_tensor_slices(data).batch(
            size, drop_remainder=True
        )
        return dataset.take(number or 1).with_options(options)

    def restore(self) -> None:
        """Brings back weights, strengths, statistics and random states."""
        for variable, value in zip(self.variables, self.start, strict=True):
            variable.assign(value)

    def fit(self, trained: keras.Model, steps: int, epochs: int = 1) -> None:
        """Trains on the first batches, in their order."""
        outer = {}
        if trained is not self.model:
            outer["outer_data"] = self.batches(self.outer)
        trained.fit(
            self.batches(self.inner, steps),
            epochs=epochs,
            shuffle=False,
            verbose=0,
            **outer,
        )

    def outer_loss(self) -> float:
        """The outer loss of the model as it is."""
        x, y = self.outer
        predictions = self.model(x, training=False)
        return float(keras.ops.mean((predictions - y) ** 2))


def measure(name: str) -> Row:
    """Measures a layer, in the precision that it has."""
    begin = time.perf_counter()
    row = Row(name, layer_models.dtype_of(name))
    with precision(row.dtype), warnings.catch_warnings():
        # Weights without a place for a regularizer in their layer's config.
        warnings.filterwarnings("ignore", message=".*has no place for one.*")
        warnings.filterwarnings("ignore", message=".*too few for anything.*")
        _fill(row, Trial(name))
    row.seconds = time.perf_counter() - begin
    return row


def _fill(row, trial):
    trial.compile_model()
    direction = [
        trial.rng.normal(size=v.shape).astype(row.dtype)
        for v in trial.learner.hyperparameters
    ]
    trial.compile_learner(hs.estimators.RMD(num_steps=STEPS), run_eagerly=True)
    try:
        row.three_steps = _derivative_error(trial, STEPS, direction)
    except ValueError as error:
        row.refused = str(error)
        if not isinstance(error, MissingSecondDerivativeError):
            return
    trial.compile_learner(hs.estimators.HPOSGLD(0, 1))
    row.one_step = _derivative_error(trial, 1, direction)
    row.weights = _weights_apart(trial)
    row.resumed = _goes_on(trial)
    row.export = _export_apart(trial)


def _derivative_error(trial, steps, direction):
    """The hypergradient along a direction, against differences."""
    strengths = trial.learner.hyperparameters
    trial.restore()
    before = [v.numpy() for v in strengths]
    trial.fit(trial.learner, steps)
    found = sum(
        float(np.sum((old - new.numpy()) / HYPER_RATE * d))
        for old, new, d in zip(before, strengths, direction, strict=True)
    )
    distance = DISTANCE[trial.dtype]
    values = []
    for sign in (1.0, -1.0):
        trial.restore()
        for strength, d in zip(strengths, direction, strict=True):
            strength.assign_add(sign * distance * d)
        trial.fit(trial.model, steps)
        values.append(trial.outer_loss())
    expected = (values[0] - values[1]) / (2 * distance)
    return abs(found - expected) / abs(expected)


def _weights_apart(trial):
    """How far two epochs of chains end from two epochs of Keras."""
    ends = []
    trial.learner.hyper_optimizer.learning_rate = 0.0
    for trained in (trial.learner, trial.model):
        trial.restore()
        trial.fit(trained, STEPS, epochs=2)
        ends.append([v.numpy() for v in trial.variables])
    return _apart(*ends)


def _apart(ours, others):
    scale = max(np.max(np.abs(b), initial=0.0) for b in others)
    differences = [
        np.max(np.abs(a.astype("float64") - b), initial=0.0)
        for a, b in zip(ours, others, strict=True)
    ]
    return float(max(differences) / scale)


def _goes_on(trial):
    """Whether a learner from a file trains on as the one that was saved."""
    trial.restore()
    trial.learner.hyper_optimizer.learning_rate = 1.0
    trial.fit(trial.learner, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "learner.keras"
        trial.learner.save(path)
        loaded = keras.models.load_model(path)
    states = []
    for learner in (trial.learner, loaded):
        trial.fit(learner, STEPS)
        variables = [*learner.model.variables, *learner.hyperparameters]
        states.append([v.numpy() for v in variables])
    return all(np.array_equal(a, b) for a, b in zip(*states, strict=True))


def _export_apart(trial):
    x = trial.outer[0]
    ours, others = (
        [model(x, training=False).numpy()]
        for model in (trial.learner.export(), trial.model)
    )
    return _apart(ours, others)
