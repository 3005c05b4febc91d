"""What a `MetaModel` does with tasks: learn, judge, predict, adapt."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.meta.task_chains import TaskChains
from keras_hposgld.meta.tasks import flat
from keras_hposgld.training import export
from keras_hposgld.training import keras_problem
from keras_hposgld.training.placement.on_replica import local_loss


def build(learner: keras.Model, tasks: tf.data.Dataset) -> None:
    """Creates all variables of a learner on the first of the tasks."""
    support = next(iter(tasks))[0]
    first = tf.nest.map_structure(lambda x: x[0], support)
    keras_problem.build_on(learner, first)


def learn(learner: keras.Model, chains: TaskChains, tasks: Any) -> None:
    """One outer iteration, on a meta-batch.

    Args:
        learner: A built and compiled `MetaModel`.
        chains: Its chains.
        tasks: Structure of tensors, a meta-batch.
    """

    def count_metrics(query, y_pred):
        x, y, sample_weight = flat(keras.utils.unpack_x_y_sample_weight(query))
        learner.compute_metrics(x, y, flat(y_pred), sample_weight)

    outer_level = learner.outer_level
    shows_metrics = len(learner.metrics) > len(outer_level.metrics) + 1
    inner_loss, outer_loss, hypergradient, layer_state = chains.estimate(
        tasks, count_metrics if shows_metrics else None
    )

    def keep_layer_state():
        variables = keras_problem.layer_variables(learner.model)
        for variable, value in zip(variables, layer_state, strict=True):
            variable.assign(tf.cast(value, variable.dtype))

    outer_level.learn(
        learner.hyperparameters,
        hypergradient,
        placement=learner.placement,
        causes=[
            ("the inner objective", inner_loss),
            ("the outer objective", outer_loss),
        ],
        also=keep_layer_state,
    )
    outer_level.logs.loss.update_state(outer_loss)
    keras_problem.loss_metric(learner).update_state(inner_loss)


def judge(learner: keras.Model, chains: TaskChains, tasks: Any) -> dict:
    """Logs of the losses and metrics of the queries, after adaptation."""
    support, query = tasks
    y_pred = flat(chains.predict(support, query[0]))
    x, y, sample_weight = flat(keras.utils.unpack_x_y_sample_weight(query))
    loss = learner.compute_loss(x, y, y_pred, sample_weight, training=False)
    keras_problem.loss_metric(learner).update_state(
        local_loss(loss), tf.shape(tf.nest.flatten(x)[0])[0]
    )
    logs = learner.compute_metrics(x, y, y_pred, sample_weight)
    return learner.outer_level.logs.without_training(logs)


def predict(chains: TaskChains, tasks: Any) -> Any:
    """The predictions of the queries, whose targets may be left out.

    Raises:
        ValueError: If there is nothing to adapt to.
    """
    if not isinstance(tasks, tuple) or len(tasks) != 2:
        raise ValueError(
            "`predict` takes meta-batches ((x_support, y_support), x_query): a "
            "model that learned where to start from predicts after it has "
            f"adapted. Received: {tasks}. Use `adapt(x_support, y_support)` "
            "and its `predict`, or `export()` for the model at the start."
        )
    support, query = tasks
    x = query[0] if isinstance(query, tuple) else query
    return chains.predict(support, x)


def adapted(
    learner: keras.Model, chains: TaskChains, support: Any, num_steps: int
) -> keras.Model:
    """A plain Keras model, adapted to the support examples of one task."""
    support = tf.nest.map_structure(tf.convert_to_tensor, support)
    keras_problem.build_on(learner, support)
    weights = chains.weights_after(support, num_steps)
    model = export.export_model(learner.model)
    for weight, value in zip(model.trainable_variables, weights, strict=True):
        weight.assign(value)
    return model
