"""Two chains from far starts: whether the evidence forgets where it began.

One chain can look settled and be stuck. Two that began far from one another,
and came to the same, have most likely both arrived.
"""

from collections.abc import Iterator
from typing import Any
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.chain_statistics import chain_statistics
from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_number
from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.hyperparameters import bijectors
from keras_hposgld.hyperparameters.discovery import values_by_path
from keras_hposgld.training.export import clone
from keras_hposgld.training.export import copy_weights
from keras_hposgld.training.posterior_average import kinds_for
from keras_hposgld.training.posterior_learner import PosteriorLearner

EXAMPLES = 100  # whose predictions are compared
FEWEST_RECORDS = 8  # of which the second half is split once more
SMALLEST = 1e-30
LARGEST_SHARE = 0.999  # of a bound


class TwoChains(NamedTuple):
    """What `two_chains` returns.

    Attributes:
        rhat: Dictionary from the path of a hyperparameter to an array of its
            shape: R-hat of the logarithms of its values.
        prediction_rhat: Array, R-hat of each prediction, of probabilities
            where those are averaged. Empty with `posterior_samples=0`.
        weak: The learner whose strengths began weak.
        strong: The one whose strengths began strong.
    """

    rhat: dict[str, np.ndarray]
    prediction_rhat: np.ndarray
    weak: keras.Model
    strong: keras.Model


def two_chains(
    learner: keras.Model,
    x: Any,
    y: Any = None,
    *,
    factor: float = 100.0,
    every: int = 1,
    inputs: Any = None,
    **fit_arguments: Any,
) -> TwoChains:
    """Trains two copies of a learner, from a weak and from a strong start.

    The strengths begin at the usual ones over `factor`, and times `factor`.
    The copies have seeds of their own, and begin at the weights that the
    learner has. It stays as it is.

    R-hat compares how much a quantity varies within and between the chains,
    over the second half of each, split once more. It is near 1 where both tell
    the same. **Above 1.1 to 1.2 the result still depends on the start**: train
    longer. Of many strengths a few are above by chance, the more so with few
    records: look at the median and at the largest. A strength that hardly
    matters may be slow to settle while the predictions agree: where predictions
    are what counts, their R-hat decides. Near 1 is no proof: both chains may
    have missed the same part of the posterior.

    Args:
        learner: `BilevelModel`, compiled with `hypergradient="evidence"`, and
            not yet trained. Its model has a config.
        x: As in `fit`. Data that can be read twice.
        y: As in `fit`.
        factor: Float above 1. Defaults to `100.0`.
        every: Integer: the hyperparameters are recorded after every so many
            chains (of one `train_step`, with `steps_per_execution`). Defaults
            to `1`. All records are kept in memory.
        inputs: Inputs of the examples whose predictions are compared. `None`
            (default): of 100 of `x`, which are arrays then.
        **fit_arguments: Other arguments of `fit`.

    Returns:
        `TwoChains`.

    Raises:
        TypeError: If `learner` is not a `BilevelModel`.
        ValueError: If it is not compiled with an estimator that needs no outer
            data, or was trained; if an argument is out of range; if `x` cannot
            be read twice; if `inputs` are needed; if there are fewer than 8
            records.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3)).astype("float32")
    y = x[:, :1] + 0.3 * rng.normal(size=(80, 1)).astype("float32")
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(
        loss=hs.losses.LearnableGaussianLoss(), hypergradient="evidence"
    )
    pair = hs.diagnostics.two_chains(
        learner, x, y, epochs=2, steps_per_epoch=300, verbose=0
    )
    for path, rhat in pair.rhat.items():
        print(path, np.median(rhat), np.max(rhat))
    print("predictions", pair.prediction_rhat.max())
    ```
    """
    factor = check_number("factor", factor, zero_allowed=False)
    every = check_count("every", every, 1)
    _check_learner(learner)
    if factor <= 1.0:
        raise ValueError(
            f"`factor` must be above 1. Received: factor={factor}. Use 100."
        )
    inputs = _inputs(learner, x, inputs)
    callbacks = keras.tree.flatten(fit_arguments.pop("callbacks", None) or [])
    copies, courses = [], []
    for number, scale in enumerate((1 / factor, factor)):
        copy, course = _copy(learner, number), _Course(scale, every)
        copy.fit(x, y, callbacks=[*callbacks, course], **fit_arguments)
        copies.append(copy)
        courses.append(course.stacked())
    first, second = courses
    rhat = {
        path: _rhat(one, other)
        for (path, one), other in zip(
            first.items(), second.values(), strict=True
        )
    }
    return TwoChains(rhat, _prediction_rhat(copies, inputs), *copies)


def _check_learner(learner: Any) -> None:
    if not isinstance(learner, PosteriorLearner):
        raise TypeError(
            f"`learner` must be a `BilevelModel`. Received: {learner!r}."
        )
    if not learner.compiled or learner.hypergradient.needs_outer:
        raise ValueError(
            "`learner` must be compiled for training data alone. Received: "
            f"{learner!r}. Call "
            '`learner.compile(..., hypergradient="evidence")` before.'
        )
    number = int(learner.outer_iterations.numpy())
    if number:
        raise ValueError(
            "`learner` must be one that was not trained: two chains begin at "
            f"its start. Received: a learner after {number} chains. Make a new "
            "one."
        )


def _inputs(learner: Any, x: Any, inputs: Any) -> Any:
    if isinstance(x, Iterator):
        raise ValueError(
            "`x` must be data that can be read twice. Received: "
            f"{type(x).__name__}. Use arrays, or a dataset without end."
        )
    if inputs is not None or not learner.posterior.number:
        return inputs
    if isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
        raise ValueError(
            "`inputs` must be given where `x` are not arrays. Received: "
            f"x of type {type(x).__name__}. Pass those of some examples."
        )

    def some(array: Any) -> Any:
        array = np.asarray(array)
        return array[:: -(-len(array) // EXAMPLES)]

    return keras.tree.map_structure(some, as_arrays(x))


def _copy(learner: Any, number: int) -> Any:
    """A learner of the same configuration, with seeds of its own."""
    deserialize = keras.saving.deserialize_keras_object
    config = learner.get_config()
    del config["model"]  # which may share adapted layers
    arguments = {key: deserialize(value) for key, value in config.items()}
    model = clone(learner.model)
    if learner.model.built and model.built:
        copy_weights(learner.model, model)
    arguments["seed"] = learner.seed + number
    copy = type(learner)(model, **arguments)
    copy.filter = learner.filter  # which no config holds
    copy.compile(
        optimizer=_copied(learner.optimizer),
        **{
            name: keras.tree.map_structure(_copied, value)
            for name, value in (
                learner.plain_compile_arguments()
                | learner.own_compile_arguments()
            ).items()
        },
    )
    copy.sampler.seed = learner.sampler.seed + number
    return copy


def _copied(part: Any) -> Any:
    """An object of the same config; a function or a name as it is."""
    if not hasattr(part, "get_config") or isinstance(part, type):
        return part
    return type(part).from_config(part.get_config())


class _Course(keras.callbacks.Callback):
    """Sets the start of the strengths, and records all hyperparameters.

    Args:
        scale: Float, of the usual start.
        every: Integer.
    """

    def __init__(self, scale: float, every: int):
        super().__init__()
        self.scale = scale
        self.every = every
        self.calls = 0
        self.values: dict[str, list] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        # By now the usual start is set, which may depend on the data.
        self.owners = self.model.find_hyperparameters()
        for owner in self.owners:
            if owner.is_about_weights:
                _scale(owner, self.scale)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.calls += 1
        if self.calls % self.every == 0:
            for path, value in values_by_path(self.owners).items():
                self.values.setdefault(path, []).append(value)

    def stacked(self) -> dict[str, np.ndarray]:
        """The logarithms of the second half of the records, by path."""
        number = min(map(len, self.values.values()), default=0)
        if number < FEWEST_RECORDS:
            raise ValueError(
                f"There must be at least {FEWEST_RECORDS} records of the "
                f"hyperparameters. Received: {number}. Train for more epochs, "
                "or lower `every`."
            )
        return {
            path: np.log(np.maximum(rows[number // 2 :], SMALLEST))
            for path, rows in self.values.items()
        }


def _scale(owner: Any, scale: float) -> None:
    """Multiplies strengths, within their bound."""
    for variable in owner.hyperparameter_variables:
        value = tf.minimum(
            scale * owner.constrain(variable), LARGEST_SHARE * owner.max_value
        )
        if owner.bijector is None:
            new = bijectors.bounded_from_log(
                tf.math.log(value), owner.max_value
            )
        else:
            new = owner.bijector.inverse(value)
        variable.assign(new)


def _rhat(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Split R-hat of two chains `(num_samples, ...)`."""
    samples = np.stack([one, other], axis=1).astype("float64")
    _, rhat = chain_statistics(tf.convert_to_tensor(samples))
    # Zero over zero: neither moves, and both are at the same place.
    return np.nan_to_num(rhat.numpy(), nan=1.0, posinf=np.inf)


def _prediction_rhat(copies: list, inputs: Any) -> np.ndarray:
    if not copies[0].posterior.number:
        return np.zeros([0])
    rows = []
    for copy in copies:
        (y,) = keras.tree.flatten(copy.posterior_predict(inputs))
        (kind,) = kinds_for(copy, y[0])
        rows.append(np.asarray(kind.values(y)))
    number = min(map(len, rows))  # after skipped updates there may be fewer
    return _rhat(*(row[-number:] for row in rows))
