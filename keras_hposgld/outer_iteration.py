"""One outer iteration on the variables of a Keras model."""

import keras
import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld.adapter import KerasProblem
from keras_hposgld.adapter import tensors
from keras_hposgld.safeguards import UpdateGuard
from keras_hposgld.sgld import SGLD


def run_outer_iteration(
    problem: KerasProblem,
    inner_batches,
    outer_batches,
    *,
    start: list[keras.Variable],
    estimator: estimators.HypergradientEstimator,
    sampler: SGLD,
    hyper_optimizer: keras.optimizers.Optimizer,
    guard: UpdateGuard,
    memory: list[keras.Variable],
) -> tuple[estimators.Estimate, tf.Tensor]:
    """Runs a chain and takes one step with the hyperparameters.

    Weights, layer state and the estimator's memory become those at the end of
    the chain. If a number is not finite, they and the hyperparameters stay as
    they were; metrics and the sampler's counter go on in any case.

    Args:
        problem: `KerasProblem`, whose variables are updated.
        inner_batches: Structure of tensors, stacked inner batches.
        outer_batches: Likewise.
        start: List of variables, the weights where the chain starts.
        estimator: `HypergradientEstimator`.
        sampler: `SGLD`.
        hyper_optimizer: Built Keras optimizer of the hyperparameters.
        guard: `UpdateGuard`.
        memory: List of variables for what the estimator remembers from chain
            to chain; empty if nothing.

    Returns:
        The estimate, and 1 if the update was skipped, else 0.
    """
    chain = estimators.Chain(
        problem,
        tensors(problem.hyperparameters),
        sampler,
        first_step=tf.cast(sampler.iterations.value, tf.int32),
        seed=sampler.chain_seed,
        memory=tensors(memory),
        names=tuple(v.path for v in problem.hyperparameters),
    )
    estimate = estimators.run_chain(
        estimator, chain, tensors(start), inner_batches, outer_batches
    )
    layer_state, metrics_state = estimate.carry

    def update():
        _assign(problem.weights, estimate.params)
        _assign(problem.layer_variables, layer_state)
        _assign(memory, estimate.memory)
        hyper_optimizer.apply(estimate.hypergradient, problem.hyperparameters)

    skipped = guard.run_if_finite(
        update,
        [
            ("the inner objective", estimate.inner_loss),
            *_named("the weight", problem.weights, estimate.params),
            ("the outer objective", estimate.outer_loss),
            *_named(
                "the hypergradient of",
                problem.hyperparameters,
                estimate.hypergradient,
            ),
        ],
    )
    _assign(problem.metrics_variables, metrics_state)
    sampler.iterations.assign_add(estimator.num_steps)
    return estimate, skipped


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _named(what, variables, values):
    return [
        (f"{what} {variable.path!r}", value)
        for variable, value in zip(variables, values, strict=True)
    ]
