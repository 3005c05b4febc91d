"""Runs a chain: a loop around an estimator's step, and one to look back.

`run_chain` works on flat lists. It serves the functional way in
(`functional.py`) and the Keras side, on one replica or on several.
"""

from collections.abc import Callable
from typing import Any
from typing import Protocol

import tensorflow as tf

from keras_hposgld.core.loop import batch_at
from keras_hposgld.core.loop import run_pooling_steps
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator


class Runner(Protocol):
    """Where the parts of a chain run: here, or on several replicas."""

    def call(self, function: Callable, *args: Any) -> Any:
        """Calls a function of a chain, on each replica with its own part."""

    def loop(
        self, step: Callable, state: Any, num_steps: Any, *args: Any
    ) -> Any:
        """The state after some steps, by one `tf.while_loop`.

        Args:
            step: Function `(state, index, *args)` to the next state, called
                as by `call`.
            state: Structure of tensors.
            num_steps: Integer, or integer tensor.
            *args: What stays fixed.
        """


class LocalRunner:
    """The `Runner` that runs everything where the caller is."""

    def call(self, function: Callable, *args: Any) -> Any:
        """Calls the function."""
        return function(*args)

    def loop(
        self, step: Callable, state: Any, num_steps: Any, *args: Any
    ) -> Any:
        """Loops around the step."""
        return run_pooling_steps(
            lambda state, index: step(state, index, *args), state, num_steps
        )


LOCAL_RUNNER = LocalRunner()


def run_chain(
    estimator: HypergradientEstimator,
    chain: Chain,
    params: list | None,
    inner_batches: Any = None,
    outer_batches: Any = None,
    *,
    runner: Runner = LOCAL_RUNNER,
) -> Estimate:
    """Runs one chain in one `tf.while_loop` and returns its estimate.

    Args:
        estimator: `HypergradientEstimator`.
        chain: `Chain`.
        params: List of tensors, where the chain starts. Not used where the
            problem has `initial_params`.
        inner_batches: Structure of tensors whose leading axis counts inner
            steps, or `None`.
        outer_batches: Structure of tensors, or `None`, as `inner_batches`.
        runner: `Runner`. If it runs on several replicas, each of them has its
            own values of all the arguments above and of the estimate.
    """

    def init(chain: Chain, params: Any) -> Any:
        estimator.check_problem(chain.problem)
        if chain.problem.initial_params is not None:
            params = chain.problem.initial_params(chain.hyperparameters)
        # Tensors of their own: where a param *is* a hyperparameter (the
        # identity as `initial_params`), a tape could not tell the two apart.
        return estimator.init(chain, [tf.identity(param) for param in params])

    def step(
        state: Any,
        index: Any,
        chain: Chain,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Any:
        return estimator.step(
            chain,
            state,
            index,
            batch_at(inner_batches, index),
            batch_at(outer_batches, index),
        )

    def close(state: Any, number: Any, chain: Chain, *batches: Any) -> Any:
        return estimator.close(chain, state, number, *batches)

    def finish(chain: Chain, state: Any, *batches: Any) -> Estimate:
        estimate = estimator.finish(chain, state, *batches)
        return poison_if_short(estimate, batches, estimator.num_steps)

    batches = (inner_batches, outer_batches)
    state = runner.call(init, chain, params)
    state = runner.loop(step, state, estimator.num_steps, chain, *batches)
    if estimator.num_closing_steps:
        state = runner.call(estimator.turn, chain, state, *batches)
        state = runner.loop(
            close, state, estimator.num_closing_steps, chain, *batches
        )
    return runner.call(finish, chain, state, *batches)


def poison_if_short(
    estimate: Estimate, batches: Any, num_steps: int
) -> Estimate:
    """NaN in place of an estimate for which there were too few batches.

    Where the number of batches is not known before the chain runs, TensorFlow
    would take the last one again and again, under XLA without a word.
    """
    short = [
        tf.shape(x)[0] < num_steps
        for x in tf.nest.flatten(batches)
        if x is not None and x.shape[0] is None
    ]
    if not short:
        return estimate
    is_short = tf.reduce_any(tf.stack(short))

    def poisoned(x: tf.Tensor) -> tf.Tensor:
        return tf.where(is_short, tf.constant(float("nan"), x.dtype), x)

    return estimate._replace(
        hypergradient=[poisoned(x) for x in estimate.hypergradient],
        params=[poisoned(x) for x in estimate.params],
        inner_loss=poisoned(estimate.inner_loss),
        outer_loss=None
        if estimate.outer_loss is None
        else poisoned(estimate.outer_loss),
    )
