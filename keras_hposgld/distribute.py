"""Several devices and several machines: the one place that names them.

An outer iteration is the same computation on any number of replicas. Each
replica has all of the weights and hyperparameters and a share of each batch;
what an estimator takes from a batch is averaged over the replicas as soon as
it has been computed (`Chain.average`), so that all of them move alike:

* the gradient of the inner objective, before it is clipped;
* the gradient v of the outer objective, before it meets the mixed derivative;
* the products with second derivatives, and the losses.

As every replica adds the whole regularization to its share of the loss, a mean
counts it once. The noise is made from the same seed everywhere.

Two facts of TensorFlow shape the rest. Replicas cannot average inside of a
loop of their own, so the loop over the inner steps stands outside, and each
step is one `strategy.run`. And a Keras loss divides by the number of replicas,
since Keras sums gradients: `local_loss` takes that back.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld.core.loop import run_steps
from keras_hposgld.estimators.estimator import batch_at
from keras_hposgld.samplers.sgld import clip_as

Strategy = tf.distribute.Strategy


def current_strategy() -> Strategy | None:
    """The strategy in whose scope the caller is; `None` outside of any."""
    if not tf.distribute.has_strategy():
        return None
    return tf.distribute.get_strategy()


def strategy_of(model) -> Strategy | None:
    """The strategy under which a built Keras model was made, if any."""
    for variable in model.variables:
        return getattr(variable.value, "distribute_strategy", None)
    return None


def is_distributed(strategy: Strategy | None) -> bool:
    """Whether a step spans replicas, be it one.

    Under `OneDeviceStrategy` it does not need to: there an optimizer may
    stand in a condition.
    """
    one_device = tf.distribute.OneDeviceStrategy
    return strategy is not None and not isinstance(strategy, one_device)


def check(
    strategy: Strategy | None,
    variables: list,
    estimator: estimators.HypergradientEstimator | None,
    jit_compile: Any = "auto",
    steps_per_execution: int = 1,
) -> None:
    """Checks that a model can be trained under its strategy.

    Args:
        strategy: The strategy that was current when the learner was made.
        variables: List of `keras.Variable`s: of the model and the optimizers.
        estimator: `HypergradientEstimator`; `None` where its chains do not
            span the replicas.
        jit_compile: The argument of `compile`.
        steps_per_execution: Likewise.

    Raises:
        ValueError: If a variable was made outside of the strategy's scope; on
            several replicas, if the estimator cannot run there, or if XLA or
            several steps at a time are asked for.
    """
    trained_under = strategy if is_distributed(strategy) else None
    for variable in variables:
        made_under = getattr(variable.value, "distribute_strategy", None)
        if made_under is not trained_under:
            scope = f"under {made_under}" if made_under else "outside of any"
            raise ValueError(
                "The model must be made in the scope of the strategy that it "
                f"is trained under. Received: {variable.path!r}, made {scope}, "
                f"and {strategy} for the training. Build and compile inside "
                "of one `with strategy.scope():`."
            )
    if not is_distributed(strategy):
        return
    several = strategy.num_replicas_in_sync > 1
    if several and estimator is not None and not estimator.serves_replicas:
        raise ValueError(
            f"`{type(estimator).__name__}` cannot run on several replicas: "
            "it has a loop of its own, inside of which replicas cannot "
            f"average. Received: {strategy.num_replicas_in_sync} replicas. "
            'Use "hpo_sgld", "adjoint_sgld" or "score_covariance".'
        )
    if jit_compile is True:
        raise ValueError(
            "`jit_compile=True` compiles for one device, without a strategy "
            "or under `OneDeviceStrategy`. Received: "
            f"jit_compile=True and {strategy.num_replicas_in_sync} replicas. "
            'Use "auto" or False.'
        )
    if steps_per_execution != 1:
        raise ValueError(
            "`steps_per_execution` must be 1 under a strategy: each outer "
            "iteration is one call, and long enough. "
            f"Received: steps_per_execution={steps_per_execution}."
        )


def run_chain(
    strategy: Strategy | None,
    estimator: estimators.HypergradientEstimator,
    make_chain: Callable,
    start: Callable,
    inner_batches: Any,
    outer_batches: Any,
) -> estimators.Estimate:
    """Runs a chain; on several replicas, outside of any.

    Args:
        strategy: `tf.distribute.Strategy` or `None`.
        estimator: `HypergradientEstimator`.
        make_chain: Function from the `average` of a `Chain` to the chain. It
            is called on each replica, whose own variables it reads.
        start: Function to the weights where the chain starts, likewise.
        inner_batches: Stacked batches: of each replica its own.
        outer_batches: Likewise.

    Returns:
        `Estimate` in ordinary tensors, but for the metrics in its `carry`,
        of which each replica has a share.
    """
    if not is_distributed(strategy):
        chain = make_chain(lambda tensors: tensors)
        return estimators.run_chain(
            estimator, chain, start(), inner_batches, outer_batches
        )

    one = strategy.num_replicas_in_sync == 1
    average = (lambda tensors: tensors) if one else _average

    def run_whole(inner_batches, outer_batches):
        chain = make_chain(average)
        return estimators.run_chain(
            estimator, chain, start(), inner_batches, outer_batches
        )

    def init():
        params = [tf.identity(param) for param in start()]
        return estimator.init(make_chain(average), params)

    def step(state, index, inner_batches, outer_batches):
        return estimator.step(
            make_chain(average),
            state,
            index,
            batch_at(inner_batches, index),
            batch_at(outer_batches, index),
        )

    def finish(state, inner_batches, outer_batches):
        chain = make_chain(average)
        return estimator.finish(chain, state, inner_batches, outer_batches)

    batches = (inner_batches, outer_batches)
    if averages_in_loops(strategy):
        estimate = strategy.run(run_whole, args=batches)
    else:
        state = run_steps(
            lambda state, index: strategy.run(
                step, args=(state, index, *batches)
            ),
            strategy.run(init),
            estimator.num_steps,
        )
        estimate = strategy.run(finish, args=(state, *batches))

    def first(value):
        return strategy.experimental_local_results(value)[0]

    def mean(value):
        # Of integers, such as the counters of dropout, all have the same.
        if not first(value).dtype.is_floating:
            return first(value)
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)

    layer_state, metrics_state = estimate.carry
    estimate = tf.nest.map_structure(
        lambda x: None if x is None else first(x), estimate._replace(carry=())
    )
    layer_state = [mean(value) for value in layer_state]
    return estimate._replace(carry=(layer_state, metrics_state))


def sum_over_replicas(
    strategy: Strategy | None, function: Callable, batch: Any
) -> Any:
    """Applies a function to each replica's part of a batch; sums the results.

    Args:
        strategy: `tf.distribute.Strategy` or `None`.
        function: Function from a batch to a structure of tensors. It may
            update metrics.
        batch: Structure of tensors, of each replica its own.
    """
    if not is_distributed(strategy):
        return function(batch)
    return tf.nest.map_structure(
        lambda x: strategy.reduce(tf.distribute.ReduceOp.SUM, x, axis=None),
        strategy.run(function, args=(batch,)),
    )


def replica_number() -> tf.Tensor | int:
    """Which of the replicas the caller is on, counted from 0."""
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def averages_in_loops(strategy: Strategy) -> bool:
    """Whether replicas can average inside of a loop of their own."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def _average(tensors):
    """The mean over the replicas, seen from one of them.

    On the way back it is the identity: with a vector that is the same on all
    replicas, that gives each replica's own part of a product with the
    derivative of the mean, and the mean of those parts is the product.
    """
    context = tf.distribute.get_replica_context()

    @tf.custom_gradient
    def mean(*local):
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, list(local))
        return tuple(means), lambda *upstream: upstream

    means = mean(*tensors)
    return list(means) if isinstance(means, list | tuple) else [means]


def local_loss(loss: tf.Tensor) -> tf.Tensor:
    """A Keras loss as it is on one replica, whose mean is the whole loss."""
    return loss * tf.distribute.get_strategy().num_replicas_in_sync


def assign_shares(strategy: Strategy | None, variables: list, values) -> None:
    """Assigns to metrics what each replica has of them."""

    def assign(values):
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    if is_distributed(strategy):
        strategy.run(assign, args=(values,))
    else:
        assign(values)


def apply_gradients(
    strategy: Strategy | None, optimizer, gradients: list, variables: list
) -> None:
    """One step of an optimizer, with gradients that all replicas agree on."""
    if not is_distributed(strategy):
        optimizer.apply(gradients, variables)
        return
    # Keras clips what a replica has, and then sums over the replicas. Clipped
    # before, the shares are no longer changed by it.
    gradients = clip_as(optimizer, gradients)
    number = strategy.num_replicas_in_sync

    def apply(gradients):
        # Divided here, on the replica's device: a sum needs to know devices.
        shares = [gradient / number for gradient in gradients]
        optimizer.apply(shares, variables)

    strategy.run(apply, args=(gradients,))


def distribute_chains(
    strategy: Strategy | None, make_dataset: Callable, batch_sizes: dict
) -> tf.data.Dataset:
    """Gives each replica its part of every batch of a chain.

    Args:
        strategy: `tf.distribute.Strategy` or `None`.
        make_dataset: Function to a dataset of stacked batches
            `(num_steps, batch_size, ...)`. It is called in each process, and
            must give the same there.
        batch_sizes: Dictionary from the name of the data to the batch size.

    Raises:
        ValueError: If a batch cannot be divided.
    """
    if not is_distributed(strategy):
        return make_dataset()
    number = strategy.num_replicas_in_sync
    for name, size in batch_sizes.items():
        if size % number:
            raise ValueError(
                f"The batches of `{name}` must be divisible by the number of "
                f"replicas. Received: batches of {size} examples "
                f"and {number} replicas. Use a batch size of "
                f"{max(size // number, 1) * number}, and data that are not "
                "fewer."
            )

    def worker_dataset(context):
        own = number // context.num_input_pipelines
        first = context.input_pipeline_id * own

        def split(stacked):
            size = (stacked.shape[1] or tf.shape(stacked)[1]) // number
            return tf.stack(
                [
                    stacked[:, (first + n) * size : (first + n + 1) * size]
                    for n in range(own)
                ]
            )

        def shares(*chain):
            # Of consecutive elements, each local replica takes one.
            return tf.data.Dataset.from_tensor_slices(
                tf.nest.map_structure(split, chain)
            )

        return make_dataset().flat_map(shares).prefetch(own)

    return strategy.distribute_datasets_from_function(worker_dataset)


def agreed(strategy: Strategy | None, number: int) -> int:
    """An integer that all processes have: that of the first one."""
    if not is_distributed(strategy):
        return number
    with strategy.scope():  # in which a variable starts everywhere alike
        return int(tf.Variable(number, dtype=tf.int64).numpy())


def train_function(model, step: Callable) -> Callable:
    """What Keras calls with an iterator, where the step spans the replicas."""

    @tf.autograph.experimental.do_not_convert
    def function(iterator):
        return step(next(iterator))

    if model.run_eagerly:
        return function
    return tf.function(function, reduce_retracing=True)
