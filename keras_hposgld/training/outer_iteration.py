"""One outer iteration: a chain, then one step with the hyperparameters."""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld.samplers import Sampler
from keras_hposgld.training import update_guard
from keras_hposgld.training.exact_draws import ExactDraws
from keras_hposgld.training.folds import Folds
from keras_hposgld.training.keras_problem import KerasProblem
from keras_hposgld.training.keras_problem import tensors
from keras_hposgld.training.outer_level import assign_all
from keras_hposgld.training.outer_level import OuterLevel
from keras_hposgld.training.placement import Placement
from keras_hposgld.training.step_sizes import StepSizes


def run_outer_iteration(
    level: OuterLevel,
    problem: KerasProblem,
    inner_batches: Any,
    outer_batches: Any,
    *,
    start: list,
    sampler: Sampler,
    placement: Placement,
    moves: bool = True,
    fold_copies: Any = (),
    step_sizes: StepSizes | None = None,
    draws: ExactDraws | None = None,
) -> tf.Tensor:
    """Runs a chain, or one a fold, and a step with the hyperparameters.

    If a number of the inner level is not finite, everything stays as it
    was; if one of the outer level is not, all but the weights. Metrics and
    counters go on in any case.

    Args:
        level: `OuterLevel`.
        problem: `KerasProblem`, whose variables are updated.
        inner_batches: Structure of tensors, stacked inner batches.
        outer_batches: Structure of tensors, stacked outer batches.
        start: List of variables, the weights where the chain starts. If
            they are not those of the problem, or stay as they are, the
            sampler begins anew.
        sampler: `Sampler`.
        placement: `OneReplica` or `Replicas`: where the chain runs.
        moves: Whether weights and layer state become those at the end of
            the chain.
        fold_copies: List of variables: the state of the folds beside the first
            one. Empty (default): there is one chain.
        step_sizes: What renews those of the sampler, if it takes them.
        draws: What draws the weights, where no steps are taken.

    Returns:
        1 if the update was skipped, else 0.
    """
    is_new = not moves or start is not problem.weights
    num_steps = (draws or level.estimator).num_steps

    new_start = start if is_new else None
    make_chain = functools.partial(_chain, level, problem, sampler, new_start)
    begin = functools.partial(tensors, start)
    if step_sizes is not None and draws is None:
        step_sizes.renew_if_due(
            sampler, placement, make_chain, begin, inner_batches
        )
    folds = Folds.of_problem(problem, sampler, level.kept, fold_copies)
    estimates = folds.run(
        lambda *batches: (draws or placement).run_chain(
            level.estimator, make_chain, begin, *batches
        ),
        inner_batches,
        outer_batches,
    )
    estimate = folds.mean(estimates)
    if step_sizes is not None:
        estimate = step_sizes.judged(estimate, sampler)
    _, metrics_state = estimate.carry
    # Before this level's own metrics, which are among them, are updated.
    placement.assign_shares(problem.metrics_variables, metrics_state)

    # An outer number that is not finite takes nothing from the weights.
    inner, _ = update_guard.causes_of(problem, level.estimator, estimate)
    tf.cond(
        update_guard.all_finite(inner),
        lambda: _move(problem, sampler, folds, estimates, moves),
        lambda: None,
    )
    iterations = sampler.keras_optimizer().iterations
    is_warm = iterations.value >= level.warmup_steps
    last = sampler.first_step(is_new) + num_steps - 1
    skipped = level.learn_from(
        *(estimate, problem, placement, sampler, last),
        only_if=is_warm if level.warmup_steps else None,
    )
    # A graph would count also a chain for which the data have run out.
    with tf.control_dependencies([skipped]):
        folds.remember(estimates, skipped)
        iterations.assign_add(num_steps)
    if step_sizes is not None and draws is None:
        step_sizes.see(estimate, skipped, sampler)
    return skipped


def _move(
    problem: KerasProblem,
    sampler: Sampler,
    folds: Folds,
    estimates: list,
    moves: bool,
) -> None:
    """Assigns what the chains have come to."""
    end = estimates[0]
    if moves:
        assign_all(problem.weights, end.params)
        assign_all(problem.layer_variables, end.carry[0])
    for name, variables in sampler.state_variables.items():
        assign_all(variables, end.sampler_state[name])
    folds.move_others(estimates)


def _chain(
    level: OuterLevel,
    problem: KerasProblem,
    sampler: Sampler,
    new_start: list | None,
    average: Callable,
) -> estimators.Chain:
    """The chain; with a new start, of a sampler that begins anew."""
    slots = sampler.state_variables.items()
    state = {name: tensors(values) for name, values in slots}
    if new_start is not None:
        state = sampler.renew(state, tensors(new_start))
    return estimators.Chain(
        problem,
        tensors(problem.hyperparameters),
        sampler,
        first_step=sampler.first_step(new_start is not None),
        sampler_state=state,
        seed=sampler.chain_seed,
        kept=tensors(level.kept),
        names=tuple(v.path for v in problem.hyperparameters),
        average=average,
    )
