"""Runs a chain: one `tf.while_loop` around an estimator's step.

`hypergradient` is the functional way in, where structures of tensors come in
and go out; `run_chain` works on flat lists and serves the Keras side too.
"""

from typing import Any

import tensorflow as tf

from keras_hposgld.core.loop import run_pooling_steps
from keras_hposgld.core.problem import BilevelProblem
from keras_hposgld.estimators.estimator import batch_at
from keras_hposgld.estimators.estimator import Chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import get
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.samplers.sgld import SGLD


def run_chain(
    estimator: HypergradientEstimator,
    chain: Chain,
    params: list | None,
    inner_batches=None,
    outer_batches=None,
) -> Estimate:
    """Runs one chain in one `tf.while_loop` and returns its estimate.

    Args:
        estimator: `HypergradientEstimator`.
        chain: `Chain`.
        params: List of tensors, where the chain starts. Not used where the
            problem has `initial_params`.
        inner_batches: Structure of tensors whose leading axis counts inner
            steps, or `None`.
        outer_batches: Likewise.
    """
    if chain.problem.initial_params is not None:
        params = chain.problem.initial_params(chain.hyperparameters)
    # Tensors of their own: where a param *is* a hyperparameter (the identity
    # as `initial_params`), a tape could not tell the two apart.
    params = [tf.identity(param) for param in params]

    def step(state, index):
        return estimator.step(
            chain,
            state,
            index,
            batch_at(inner_batches, index),
            batch_at(outer_batches, index),
        )

    state = run_pooling_steps(
        step, estimator.init(chain, params), estimator.num_steps
    )
    return estimator.finish(chain, state, inner_batches, outer_batches)


def hypergradient(
    problem: BilevelProblem,
    hyperparameters: Any,
    params: Any = None,
    *,
    estimator: Any = "hpo_sgld",
    sampler: SGLD,
    inner_batches: Any = None,
    outer_batches: Any = None,
    seed: Any = 0,
) -> Estimate:
    """Estimates the hypergradient of a bilevel problem by one chain.

    A pure function: it works eagerly, inside `tf.function` and with
    `jit_compile=True`, and leaves `sampler` as it was.

    Args:
        problem: `BilevelProblem`.
        hyperparameters: Structure of floating-point tensors.
        params: Structure of floating-point tensors, where the chain starts.
            Not needed, and not used, where the problem has `initial_params`.
        estimator: `HypergradientEstimator` or an alias. Defaults to
            `"hpo_sgld"`.
        sampler: `SGLD`: the step of the chain. As any Keras optimizer, it
            has to be made outside of a `tf.function`.
        inner_batches: Structure of tensors with a leading axis of at least
            `estimator.num_steps`: what the inner objective takes as `batch`
            in each step. `None`, the default: no data.
        outer_batches: Likewise, for the outer objective.
        seed: Integer, or integer tensor of shape `(2,)`. Equal seeds give
            equal chains.

    Returns:
        `Estimate`.

    Raises:
        ValueError: If there are no hyperparameters; if `params` is missing;
            if there are fewer batches than the chain needs.
        TypeError: If a tensor is not of a floating-point dtype, or `sampler`
            no `SGLD`.

    Example:

    ```python
    import keras_hposgld as hs
    import tensorflow as tf

    def inner(strengths, weights, batch):
        x, y = batch
        error = tf.linalg.matvec(x, weights) - y
        penalty = tf.reduce_sum(strengths * weights**2)
        return tf.reduce_mean(error**2) + penalty

    def outer(strengths, weights, batch):
        x, y = batch
        return tf.reduce_mean((tf.linalg.matvec(x, weights) - y) ** 2)

    x = tf.random.normal((20, 8, 3))  # 20 steps of 8 examples
    y = tf.reduce_sum(x, axis=-1)
    estimate = hs.hypergradient(
        hs.BilevelProblem(inner, outer),
        hyperparameters=tf.fill([3], 0.5),
        params=tf.zeros([3]),
        estimator=hs.estimators.HPOSGLD(burn_in=10, num_samples=10),
        sampler=hs.SGLD(0.05, temperature=1e-4),
        inner_batches=(x, y),
        outer_batches=(x, y),
    )
    assert estimate.hypergradient.shape == (3,)
    ```
    """
    estimator = get(estimator)
    if not isinstance(sampler, SGLD):
        raise TypeError(
            "`sampler` must be a `keras_hposgld.SGLD`. "
            f"Received: sampler={sampler!r}."
        )
    hyperparameters = _float_tensors("hyperparameters", hyperparameters)
    if not tf.nest.flatten(hyperparameters):
        raise ValueError(
            "`hyperparameters` must hold at least one tensor. "
            f"Received: hyperparameters={hyperparameters}."
        )
    if problem.initial_params is not None:
        params = problem.initial_params(hyperparameters)
    elif params is None:
        raise ValueError(
            "`params` must be given where the problem has no "
            "`initial_params`. Received: params=None."
        )
    params = _float_tensors("params", params)
    for name, batches in (
        ("inner_batches", inner_batches),
        ("outer_batches", outer_batches),
    ):
        _check_batches(name, batches, estimator.num_steps)

    seed = tf.cast(seed, tf.int32)
    chain = Chain(
        problem=problem.on_lists(hyperparameters, params),
        hyperparameters=tf.nest.flatten(hyperparameters),
        sampler=sampler,
        first_step=0,
        seed=tf.stack([seed, 0]) if seed.shape.rank == 0 else seed,
    )
    estimate = run_chain(
        estimator,
        chain,
        tf.nest.flatten(params),
        inner_batches,
        outer_batches,
    )
    return estimate._replace(
        hypergradient=tf.nest.pack_sequence_as(
            hyperparameters, estimate.hypergradient
        ),
        params=tf.nest.pack_sequence_as(params, estimate.params),
    )


def _float_tensors(name, structure):
    tensors = tf.nest.map_structure(
        lambda x: tf.convert_to_tensor(float(x) if isinstance(x, int) else x),
        structure,
    )
    for tensor in tf.nest.flatten(tensors):
        if not tensor.dtype.is_floating:
            raise TypeError(
                f"`{name}` must hold floating-point tensors, or nothing can be "
                f"differentiated by them. Received: a tensor of dtype "
                f"{tensor.dtype.name}."
            )
    return tensors


def _check_batches(name, batches, num_steps):
    for tensor in tf.nest.flatten(batches):
        if tensor is None:
            continue
        shape = tf.convert_to_tensor(tensor).shape
        if shape.rank == 0 or (shape[0] is not None and shape[0] < num_steps):
            raise ValueError(
                f"`{name}` must have a leading axis of at least {num_steps}, "
                "one batch for each inner step. Received: a tensor of shape "
                f"{tuple(shape)}. Stack more batches or shorten the chain."
            )
