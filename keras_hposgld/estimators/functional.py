"""`hypergradient`: structures of tensors come in and go out."""

import numbers
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hposgld import samplers
from keras_hposgld.core.checks import check_seed
from keras_hposgld.core.problem import BilevelProblem
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.driver import run_chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.registry import get
from keras_hposgld.samplers.noise import seed_from


def hypergradient(
    problem: BilevelProblem,
    hyperparameters: Any,
    params: Any = None,
    *,
    estimator: Any = "hpo_sgld",
    sampler: Any,
    inner_batches: Any = None,
    outer_batches: Any = None,
    seed: Any = 0,
    previous: Estimate | None = None,
) -> Estimate:
    """Estimates the hypergradient of a bilevel problem by one chain.

    A pure function: it works eagerly, inside `tf.function` and with
    `jit_compile=True`, and leaves `sampler` as it was. Nothing is
    differentiated through it: a gradient tape around it sees a constant.

    Args:
        problem: `BilevelProblem`.
        hyperparameters: Structure of floating-point tensors.
        params: Structure of floating-point tensors, where the chain starts.
            Not needed, and not used, where the problem has `initial_params`;
            not needed after `previous`.
        estimator: `HypergradientEstimator` or an alias. Defaults to
            `"hpo_sgld"`.
        sampler: `Sampler`, such as `SGLD`; a Keras optimizer of a kind that
            `samplers.from_optimizer` serves; or a name. Keras optimizers,
            `SGLD` among them, have to be made outside of a `tf.function`.
        inner_batches: Structure of tensors with a leading axis of at least
            `estimator.num_steps`: what the inner objective takes as `batch`
            in each step. `None`, the default: no data.
        outer_batches: Structure of such tensors for the outer objective, or
            `None`.
        seed: Integer, `0 <= seed < 2**64`, or integer tensor, a scalar or of
            shape `(2,)`. Equal seeds give equal chains.
        previous: `Estimate` of the chain before this one, which it resumes:
            at its params (unless `params` are given), with the sampler's
            state, what the estimator kept, and the number of steps, from which
            schedules and noise go on. `None`, the default: a first chain.

    Returns:
        `Estimate`.

    Raises:
        ValueError: If there are no hyperparameters or no params; if `params`
            is missing; if there are fewer batches than the chain needs. (Where
            their number is not known beforehand, TensorFlow raises its own
            error; under XLA, which cannot raise, the hypergradient is NaN.)
        TypeError: If a tensor is not of a floating-point dtype, or `sampler`
            is not a sampler.

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
    sampler = samplers.get(sampler)
    hyperparameters = _float_tensors("hyperparameters", hyperparameters)
    kept, sampler_state, first_step = _state_of(previous)
    if previous is not None and params is None:
        params = previous.params
    if problem.initial_params is not None:
        params = problem.initial_params(hyperparameters)
        sampler_state = None  # which belongs to other weights
    elif params is None:
        raise ValueError(
            "`params` must be given where the problem has no "
            "`initial_params`. Received: params=None."
        )
    params = _float_tensors("params", params)
    inner_batches, outer_batches = (
        _checked(name, batches, estimator.num_steps)
        for name, batches in (
            ("inner_batches", inner_batches),
            ("outer_batches", outer_batches),
        )
    )
    chain = Chain(
        problem=problem.on_lists(hyperparameters, params),
        hyperparameters=tf.nest.flatten(hyperparameters),
        sampler=sampler,
        first_step=first_step,
        seed=_seed(seed),
        kept=kept,
        sampler_state=sampler_state,
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
        num_steps=chain.number(estimator.num_steps),
    )


def _state_of(previous: Estimate | None) -> tuple:
    """What a chain goes on with: what was kept, sampler state, steps taken."""
    if previous is None:
        return (), None, 0
    return previous.kept, previous.sampler_state, previous.num_steps


def _float_tensors(name: str, structure: Any) -> Any:
    """Tensors of their own, through which no tape looks back.

    Of their own, since a tape could not tell apart two hyperparameters that
    are the same tensor, or one that an objective closes over as well.
    """

    def one(x: Any) -> tf.Tensor:
        if isinstance(x, numbers.Integral):  # those of NumPy too
            x = float(x)
        try:
            x = tf.convert_to_tensor(x)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`{name}` must be a structure (list, tuple, dictionary) of "
                f"tensors. Received: a leaf of type {type(x).__name__}, which "
                f"is not a tensor: {error}"
            ) from error
        if not x.dtype.is_floating:
            raise TypeError(
                f"`{name}` must hold floating-point tensors, or nothing can be "
                f"differentiated by them. Received: a tensor of dtype "
                f"{x.dtype.name}."
            )
        return tf.stop_gradient(x)

    tensors = tf.nest.map_structure(one, structure)
    if not tf.nest.flatten(tensors):
        raise ValueError(
            f"`{name}` must hold at least one tensor. "
            f"Received: {name}={structure}."
        )
    return tensors


def _checked(name: str, batches: Any, num_steps: int) -> Any:
    """Batches as constants, whose leading axis is long enough."""

    def one(x: Any) -> tf.Tensor | None:
        if x is None:
            return None
        x = tf.stop_gradient(tf.convert_to_tensor(x))
        length = x.shape[0] if x.shape.rank else 0
        if length is not None and length < num_steps:
            raise ValueError(
                f"`{name}` must have a leading axis of at least {num_steps}, "
                "one batch for each inner step. Received: a tensor of shape "
                f"{tuple(x.shape)}. Stack more batches or shorten the chain."
            )
        if length is None:
            check = tf.debugging.assert_greater_equal(
                tf.shape(x)[0],
                num_steps,
                f"`{name}` must have a leading axis of at least {num_steps}, "
                "one batch for each inner step. Stack more batches or shorten "
                "the chain.",
            )
            with tf.control_dependencies([] if check is None else [check]):
                x = tf.identity(x)
        return x

    return tf.nest.map_structure(one, batches)


def _seed(seed: Any) -> tf.Tensor:
    """64 bits, as an integer tensor of shape `(2,)`."""
    if not tf.is_tensor(seed) and np.ndim(seed) == 0:
        return seed_from(check_seed("seed", seed))
    seed = tf.convert_to_tensor(seed)
    if seed.shape.rank == 0:
        if seed.dtype.size == 8:
            return tf.bitcast(seed, tf.int32)
        return tf.stack([tf.cast(seed, tf.int32), 0])
    return tf.cast(seed, tf.int32)
