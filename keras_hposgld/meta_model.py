"""Meta-learning: initial weights from which a few steps suffice.

The hyperparameters are the initial weights of a model (and what its layers and
its loss own besides). `train_step` is one outer iteration: a chain in each task
of a meta-batch, and one step with the mean of their hypergradients.
"""

from typing import Any

import keras
import numpy as np

from keras_hposgld import estimators
from keras_hposgld.meta import meta_steps
from keras_hposgld.meta.task_chains import TaskChains
from keras_hposgld.meta.tasks import check_meta_batches
from keras_hposgld.training.learner import Learner


@keras.saving.register_keras_serializable(package="keras_hposgld")
class MetaModel(Learner):
    """Wraps a Keras model so that `fit` learns its initial weights.

    Its own weights are the initial ones; `adapt` gives a model for a task. A
    meta-batch is a tuple `((x_support, y_support), (x_query, y_query))` whose
    tensors have a leading axis for the tasks: `hs.data.episodes` makes such.
    In each task a chain of `hypergradient.num_steps` steps starts at the
    initial weights and runs on all of the support examples.

    What layers hold besides weights (moving statistics, counters of dropout)
    goes through each chain on its own, and the model keeps the mean over the
    tasks. In inference, batch normalization takes its moving statistics, which
    do not follow a task: a layer that always normalizes by what it sees (the
    example on Omniglot has one) adapts better, if queries come together.

    Args:
        model: `keras.Model`.
        seed: Integer. `None`, the default, draws one from Python's generator,
            which `keras.utils.set_random_seed` fixes.
        name: String.

    Raises:
        TypeError: If `model` is no `keras.Model`.

    Reference:
        Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast
        Adaptation of Deep Networks", ICML 2017; Kim and Hospedales, AAAI
        2025, for the hypergradient.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    images = np.random.normal(size=(60, 8, 8, 1))
    tasks = hs.data.episodes(
        images, np.arange(60) % 6, ways=3, num_batches=10
    )
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    meta = hs.MetaModel(model)
    meta.compile(
        optimizer=hs.SGLD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    meta.fit(tasks, epochs=2, verbose=0)
    (x_support, y_support), (x_query, y_query) = next(iter(tasks))
    adapted = meta.adapt(x_support[0], y_support[0])
    print(adapted.predict(x_query[0], verbose=0).shape)
    ```
    """

    def compile(
        self,
        optimizer: Any,
        loss: Any = None,
        metrics: Any = None,
        hypergradient: Any = None,
        hyper_optimizer: Any = None,
        outer_loss: Any = None,
        proximal: float = 0.0,
        adaptation_steps: int | None = None,
        layer_state: str = "carried",
        max_skipped_updates: int = 10,
        **keras_arguments: Any,
    ) -> None:
        """Configures both levels.

        Args:
            optimizer: The sampler of the chain in each task, as in
                `BilevelModel.compile`. In each task it begins anew, and its
                steps are counted from there.
            loss: The inner loss, as in Keras.
            metrics: As in Keras, of the adapted model on the query examples.
            hypergradient: An estimator or its alias. Defaults to
                `HPOSGLD(burn_in=0, num_samples=5, curvature="telescoped")`.
                (`"first_order"` is first-order MAML, `"rmd"` is MAML,
                `"ift_cg"` with `proximal` is iMAML.)
            hyper_optimizer: Keras optimizer of the initial weights. Defaults
                to `keras.optimizers.Adam(0.001)`.
            outer_loss: Keras loss on the query examples. `None` (default):
                `loss` without the regularization.
            proximal: Float `>= 0`: the inner objective has
                `proximal / 2 * sum((weights - initial weights) ** 2)` added.
                Defaults to `0.0`.
            adaptation_steps: Integer: the steps that `adapt`, `evaluate` and
                `predict` take in a task. `None` (default): as many as a chain.
            layer_state: As in `BilevelModel.compile`.
            max_skipped_updates: As in `BilevelModel.compile`.
            **keras_arguments: `loss_weights`, `weighted_metrics`,
                `run_eagerly`, `jit_compile`, as in Keras.

        Raises:
            TypeError: If `optimizer` is not a sampler.
            ValueError: If an argument is unknown or out of range, or
                `optimizer` is of a kind that is not served.
        """
        optimizer = self.use_sampler(optimizer)
        if hypergradient is None:
            hypergradient = estimators.HPOSGLD(0, 5, curvature="telescoped")
        self.outer_level.configure(
            hypergradient,
            hyper_optimizer or keras.optimizers.Adam(1e-3),
            outer_loss=outer_loss,
            layer_state=layer_state,
            max_skipped_updates=max_skipped_updates,
        )
        self.proximal = estimators.check_number("proximal", proximal)
        self.adaptation_steps = estimators.check_count(
            "adaptation_steps",
            self.hypergradient.num_steps
            if adaptation_steps is None
            else adaptation_steps,
            0,
        )
        self._chains = TaskChains(self)
        super().compile(
            optimizer=optimizer,
            loss=loss,
            metrics=metrics,
            auto_scale_loss=False,
            **keras_arguments,
        )
        if self.built:
            self._prepare()

    def _prepare(self):
        weights = self.trainable_variables
        # Replicas meet once an iteration, so that any estimator will do.
        self.placement.check(
            [*self.model.variables, *self.hyperparameters],
            None,
            self.jit_compile,
            self.steps_per_execution,
        )
        self.outer_level.prepare(
            self.model, self.find_hyperparameters(), self.sampler, weights
        )
        self.track_for_checkpoints()

    @property
    def owned_hyperparameters(self) -> list[keras.Variable]:
        """Those that layers and losses own."""
        return super().hyperparameters

    @property
    def hyperparameters(self) -> list[keras.Variable]:
        """The initial weights, then what layers and losses own."""
        return [*self.trainable_variables, *self.owned_hyperparameters]

    def fit(
        self, x: Any = None, *, callbacks: Any = None, **keras_arguments: Any
    ) -> keras.callbacks.History:
        """Learns the initial weights.

        Args:
            x: `tf.data.Dataset` of meta-batches; each is one outer iteration.
            callbacks: As in Keras.
            **keras_arguments: As in Keras; `validation_data` are meta-batches,
                too.

        Returns:
            `keras.callbacks.History` with `"loss"` (inner), `"outer_loss"`,
            `"hypergradient_norm"`, `"skipped_updates"` and the metrics.

        Raises:
            ValueError: If the elements of `x` are no meta-batches.
            RuntimeError: If `compile` was not called, or if
                `max_skipped_updates` updates in a row were skipped because a
                number was not finite.
        """
        self._build_on("x", x)
        return self.watched_fit(
            x,
            callbacks=callbacks,
            shuffle=False,  # done by who made the tasks
            **keras_arguments,
        )

    def evaluate(
        self, x: Any = None, y: Any = None, **keras_arguments: Any
    ) -> Any:
        """Adapts to each task and judges the queries, as Keras's `evaluate`.

        Args:
            x: As in `fit`.
            **keras_arguments: As in Keras.
        """
        self._build_on("x", x)
        return super().evaluate(x, y, **keras_arguments)

    def predict(self, x: Any, **keras_arguments: Any) -> np.ndarray:
        """Predicts the queries of each task by the model adapted to it.

        Args:
            x: As in `fit`; the targets of the queries may be left out:
                `((x_support, y_support), x_query)`.
            **keras_arguments: As in Keras.

        Returns:
            Array `(number of tasks, queries, ...)`.

        Raises:
            RuntimeError: If `compile` was not called.
        """
        self._check_compiled()
        return super().predict(x, **keras_arguments)

    def _check_compiled(self):
        if not self.compiled:
            raise RuntimeError(
                "`compile(...)` must be called before: it names the loss and "
                "the sampler of the steps."
            )

    def _build_on(self, name, tasks):
        check_meta_batches(name, tasks)
        self._check_compiled()
        if self.train_function is None and self.test_function is None:
            with self.distribute_strategy.scope():
                meta_steps.build(self, tasks)
                self._prepare()

    def _maybe_symbolic_build(self, *args, **kwargs):
        pass  # everything has been built on a task

    def steps_ahead(self, batches: int) -> range:
        """The steps of one chain: in each task they begin anew."""
        return range(max(self.hypergradient.num_steps, self.adaptation_steps))

    def train_step(self, tasks):
        """One outer iteration, on a meta-batch."""
        meta_steps.learn(self, self._chains, tasks)
        return self.get_metrics_result()

    def test_step(self, tasks):
        """Losses and metrics of the queries, after adaptation."""
        return meta_steps.judge(self, self._chains, tasks)

    def predict_step(self, tasks):
        """The predictions of the queries of a meta-batch."""
        return meta_steps.predict(self._chains, tasks)

    def adapt(
        self, x: Any, y: Any, *, num_steps: int | None = None
    ) -> keras.Model:
        """A plain Keras model, adapted to one task.

        Args:
            x: Inputs of the support examples, without an axis for tasks.
            y: Their targets.
            num_steps: Integer, steps of the sampler. `None` (default):
                `adaptation_steps`.

        Returns:
            `keras.Model`, as from `export`. The initial weights stay.

        Raises:
            RuntimeError: If `compile` was not called.
        """
        self._check_compiled()
        num_steps = self.adaptation_steps if num_steps is None else num_steps
        return meta_steps.adapted(
            self,
            self._chains,
            (x, y),
            estimators.check_count("num_steps", num_steps, 0),
        )

    def own_compile_arguments(self) -> dict:
        return super().own_compile_arguments() | {
            "proximal": self.proximal,
            "adaptation_steps": self.adaptation_steps,
        }
