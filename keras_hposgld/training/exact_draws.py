"""Chains of one draw: the weights of a linear model, drawn from their law.

On inputs that are strongly correlated, such as spectra, Langevin steps do not
mix: along some directions the law of the weights is a hundred times as wide as
along others, and a step can follow the narrowest alone. Where the law given
the hyperparameters is Gaussian it can be drawn from as it is. Such a chain
takes one batch, of all examples, and ends at a draw that owes nothing to the
one before it.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_hposgld.core.loop import batch_at
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.data.padding import unpadded
from keras_hposgld.estimators import Estimate
from keras_hposgld.samplers import exact_linear
from keras_hposgld.samplers.noise import fold_in
from keras_hposgld.training import keras_problem
from keras_hposgld.training.linear_model import is_flat
from keras_hposgld.training.linear_model import LinearModel
from keras_hposgld.training.linear_model import why_not_linear

MAX_EXAMPLES = 2000  # a draw takes the cube of this, or of the inputs
# Ratios of eigenvalues of the law up to which steps are worth while.
MAX_RATIO = 1e4
TOLERANCE = 0.02  # of the loss, which half precision has to meet
PURPOSE = 0x657861  # sets the noise apart from that of steps


class ExactDraws:
    """Makes chains of one draw; stands in for `Placement.run_chain`.

    Args:
        linear: `LinearModel`.
        num_examples: Integer, those of each batch.
    """

    num_steps = 1  # batches of a chain

    def __init__(self, linear: LinearModel, num_examples: int):
        self.linear = linear
        self.num_examples = num_examples

    def run_chain(
        self,
        estimator: Any,
        make_chain: Callable,
        start: Callable,
        inner_batches: Any,
        outer_batches: Any = None,
    ) -> Estimate:
        """One draw, and what an estimator makes of it.

        Args:
            estimator: `Evidence`.
            make_chain: As in `Replicas.run_chain`, like the others. Where the
                chain would start does not matter.
            start: Function.
            inner_batches: The stacked batches, one of them.
            outer_batches: Not used.
        """
        chain = make_chain(lambda tensors: tensors)
        batch = batch_at(inner_batches, 0)
        temperature = tf.cast(chain.sampler.law_temperature, tf.float64)
        curvature = chain.problem.curvature_of(chain.hyperparameters)
        examples = self._all_of(unpadded(batch))
        law = self.linear.law(examples, curvature, temperature)
        seed = fold_in(fold_in(chain.seed, chain.number(0)), PURPOSE)
        rows = exact_linear.draw(law, seed)
        # At another temperature than 1/n an example is more or less than one.
        share = 1.0 / (self.num_examples * temperature)
        squares = tf.reduce_sum(law.errors(rows) ** 2)
        estimate = estimator.of_draw(chain, self.linear.split(rows), batch)
        return estimate._replace(
            squared_errors=(
                share * squares,
                share * self.linear.count(examples),
            )
        )

    def _all_of(self, batch: Any) -> Any:
        """The batch, with the number of its examples known and checked."""
        return tf.nest.map_structure(
            lambda x: (
                None
                if x is None
                else tf.ensure_shape(x, [self.num_examples, *x.shape[1:]])
            ),
            batch,
        )


def choose(learner: keras.Model, data: FitData) -> ExactDraws | None:
    """What draws the weights in a `fit`; `None` where steps move them.

    Args:
        learner: `BilevelModel`, built and compiled.
        data: `FitData`, whose batches then hold all examples.

    Raises:
        ValueError: If draws were asked for, and the model is of another kind.
    """
    wanted = learner.sampler.draws_exactly
    if wanted is False:
        return None
    obstacle = _obstacle(learner, data)
    if obstacle is not None:
        if wanted is None:
            return None
        rule, received = obstacle
        raise ValueError(
            f'`integrator="exact"` needs {rule}. Received: {received}. '
            'Use `SGLD("auto")`, which chooses by itself.'
        )
    level = data.levels[0]
    linear = LinearModel(learner.model, _noise_of(learner))
    batch = level.whole()
    if wanted is None and _mixes(linear, batch):
        return None
    level.join()
    return ExactDraws(linear, _length(batch))


def _obstacle(learner: keras.Model, data: FitData) -> tuple[str, str] | None:
    """What is to be otherwise, and what was received; `None`: nothing."""
    estimator = learner.hypergradient
    if not hasattr(estimator, "of_draw"):
        return 'hypergradient="evidence"', f"hypergradient={estimator!r}"
    number = learner.placement.num_replicas
    if number > 1:
        return "one replica", f"a strategy with {number} of them"
    obstacle = why_not_linear(learner.model)
    if obstacle is not None:
        return obstacle
    noise = _noise_of(learner)
    if noise is None:
        loss = learner.plain_compile_arguments()["loss"]
        return "the loss `LearnableGaussianLoss`", f"loss={loss!r:.80}"
    batch = data.levels[0].whole()
    if batch is None:
        size = data.levels[0].batch_size
        return "batches that hold all examples", f"one of {size} of them"
    number = _length(batch)
    if number > MAX_EXAMPLES:
        return f"at most {MAX_EXAMPLES} examples", f"{number}"
    linear = LinearModel(learner.model, noise)
    if is_flat(linear.kernel) and linear.num_inputs > number:
        return (
            "a penalty of the kernel where there are more inputs than examples",
            f"{linear.num_inputs} inputs and {number} examples",
        )
    if not _has_law(learner, linear, batch):
        return (
            "a model whose loss is that of `LearnableGaussianLoss` and the "
            "penalties of its weights, and nothing else",
            "one with another loss or in half precision, by `add_loss`, a "
            "mask or a method of its own",
        )
    return None


def _noise_of(learner: keras.Model) -> Any:
    owners = learner.find_hyperparameters()
    known = [o for o in owners if o.noise_deviation() is not None]
    return known[0] if len(known) == 1 else None


def _length(batch: Any) -> int:
    return int(tf.nest.flatten(batch[0])[0].shape[0])


def _mixes(linear: LinearModel, batch: Any) -> bool:
    """Whether Langevin steps would do, by the data alone.

    The strengths and the noise, which are learned, are left out, lest a `fit`
    that goes on chooses otherwise: both precisions are one.
    """
    x = linear.features(batch[0]).numpy()
    number, num_inputs = x.shape
    if num_inputs > number:
        return False
    eigenvalues = np.linalg.eigvalsh(x.T @ x) + 1.0
    return bool(eigenvalues[-1] <= MAX_RATIO * eigenvalues[0])


def _has_law(learner: keras.Model, linear: LinearModel, batch: Any) -> bool:
    """Whether the loss is what the law says, at three random points."""
    problem = keras_problem.KerasProblem(
        learner,
        learner.hyperparameters,
        keras_problem.layer_variables(learner.model),
        learner.outer_level.loss(learner),
        learner.outer_level.layer_state,
        tracks_metrics=False,
        weigh=learner._weigh,
    )
    hypers = keras_problem.tensors(problem.hyperparameters)
    law = linear.law(batch, problem.curvature_of(hypers), 1.0)
    rng, shape = np.random.default_rng(0), law.center.shape
    scale = 1.0 / np.sqrt(shape[0])
    found, expected = [], []
    for _ in range(3):
        rows = law.center + scale * rng.normal(size=shape)
        params = linear.split(rows)
        value, _ = problem.inner(hypers, params, batch, problem.initial_carry)
        found.append(float(value))
        expected.append(float(law.energy(rows)))
    # The normalizer of the likelihood, which the energy leaves out, is the
    # same everywhere.
    error = np.ptp(np.subtract(found, expected))
    # Numbers that are not finite are for others to find.
    return not error > TOLERANCE * np.max(np.abs(expected))


def differ(one: ExactDraws | None, other: ExactDraws | None) -> bool:
    """Whether what was compiled for one does not serve the other."""
    if one is None or other is None:
        return one is not other
    return one.num_examples != other.num_examples


class SaysSo(keras.callbacks.Callback):
    """Says when a `fit` begins that there are draws in it, and no steps.

    Args:
        draws: `ExactDraws` or `None`.
    """

    def __init__(self, draws: ExactDraws | None):
        super().__init__()
        self.draws = draws

    def on_train_begin(self, logs: Any = None) -> None:
        is_chosen = self.model.sampler.draws_exactly is None
        if self.draws and is_chosen and (self.params or {}).get("verbose"):
            print(
                'SGLD("auto") draws the weights of this linear model from '
                "their law, one draw for each batch of all "
                f"{self.draws.num_examples} examples: steps would not mix. "
                'integrator="averaged" takes steps.'
            )
