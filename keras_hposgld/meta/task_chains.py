"""The chains in the tasks of a meta-batch: to learn, to adapt, to predict."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld.estimators import descent
from keras_hposgld.meta.meta_problem import MetaProblem
from keras_hposgld.meta.tasks import mean
from keras_hposgld.meta.tasks import over_tasks
from keras_hposgld.meta.tasks import summable
from keras_hposgld.samplers.noise import fold_in
from keras_hposgld.training.keras_problem import layer_variables
from keras_hposgld.training.keras_problem import tensors


class TaskChains:
    """Runs the chains of a `MetaModel`, on one replica or on several.

    Args:
        learner: A built and compiled `MetaModel`.
    """

    def __init__(self, learner: keras.Model):
        self.learner = learner
        self._state_after = tf.function(
            lambda support, num_steps: self._descend(support, 0, num_steps)[-1],
            autograph=False,
            reduce_retracing=True,
        )

    def estimate(self, tasks: Any, after_queries: Any = None) -> tuple:
        """Means over the tasks of a meta-batch, on all replicas.

        Args:
            tasks: Structure of tensors, a meta-batch.
            after_queries: Function of the predictions of the queries, on each
                replica. `None` (default): they are not computed.

        Returns:
            Inner loss, outer loss, hypergradient and state of the layers.
        """

        def on_replica(tasks):
            return self._sums(tasks, after_queries)

        number, sums = self.learner.placement.sum(on_replica, tasks)
        return mean(sums, number)

    def weights_after(self, support: Any, num_steps: int) -> list:
        """The weights after some steps in a task."""
        state = self._state_after(support, tf.constant(num_steps))
        return state.position.params

    def predict(self, support: Any, x: Any) -> Any:
        """Predictions of the queries of each task, after adaptation to it."""

        def predict_one(number, task):
            support, x = task
            problem, chain, state = self._descend(
                support, number, self.learner.adaptation_steps
            )
            return (), problem.predict(
                chain.hyperparameters,
                state.position.params,
                x,
                state.position.carry,
            )

        spec = self._prediction_spec(x)
        return over_tasks(predict_one, (support, x), (), spec)[-1]

    def _chain(self, problem, number):
        """The chain in task `number` of the meta-batch."""
        learner = self.learner
        iteration = fold_in(
            learner.sampler.chain_seed, learner.outer_iterations
        )
        return estimators.Chain(
            problem,
            tensors(learner.hyperparameters),
            learner.sampler,
            first_step=0,
            seed=fold_in(iteration, number),
            names=tuple(v.path for v in learner.hyperparameters),
        )

    def _sums(self, tasks, after_queries):
        """Sums over the tasks of one replica, and how many there are."""
        learner = self.learner

        def estimate_task(number, task):
            support, query = task
            problem = MetaProblem(learner, support, query, learner.proximal)
            chain = self._chain(problem, number)
            estimate = estimators.run_chain(learner.hypergradient, chain, None)
            layer_state, _ = estimate.carry
            sums = (
                estimate.inner_loss,
                estimate.outer_loss,
                estimate.hypergradient,
                [summable(value) for value in layer_state],
            )
            if after_queries is None:
                return sums, ()
            return sums, problem.predict(
                chain.hyperparameters,
                estimate.params,
                query[0],
                estimate.carry,
            )

        zero = tf.zeros([], keras.config.floatx())
        layer_state = tensors(layer_variables(learner.model))
        zeros = (
            zero,
            zero,
            [tf.zeros_like(v.value) for v in learner.hyperparameters],
            [tf.zeros_like(summable(value)) for value in layer_state],
        )
        spec = ()
        if after_queries is not None:
            spec = self._prediction_spec(tasks[1][0])
        number, sums, y_pred = over_tasks(estimate_task, tasks, zeros, spec)
        if after_queries is not None:
            after_queries(tasks[1], y_pred)
        return number, sums

    def _descend(self, support, number, num_steps):
        """The problem of a task, its chain and the state after some steps."""
        learner = self.learner
        problem = MetaProblem(learner, support, proximal=learner.proximal)
        chain = self._chain(problem, number)
        params = tensors(learner.trainable_variables)
        return problem, chain, descent.run(chain, params, num_steps)

    def _prediction_spec(self, x):
        """What the model predicts for the queries of one task, as specs."""
        return self.learner.model.compute_output_spec(
            keras.tree.map_structure(
                lambda t: keras.KerasTensor(t.shape[1:], t.dtype.name), x
            )
        )
