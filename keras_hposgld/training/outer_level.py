"""The outer level: what learns the hyperparameters of a Keras model.

`BilevelModel` and `callbacks.LearnHyperparameters` both hold one `OuterLevel`.
It owns what goes on from chain to chain (the optimizer of the hyperparameters,
what the estimator remembers, counters), and knows how to take a step with the
hyperparameters from what a chain has estimated.
"""

from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld.core.checks import check_known
from keras_hposgld.data.level import Level
from keras_hposgld.hyperparameters.discovery import variables_of
from keras_hposgld.samplers import Sampler
from keras_hposgld.training import checks
from keras_hposgld.training import update_guard
from keras_hposgld.training.built_for import BuiltFor
from keras_hposgld.training.hyperprior import Hyperprior
from keras_hposgld.training.hyperprior import loss_unit
from keras_hposgld.training.hyperprior import SharesSeen
from keras_hposgld.training.keras_problem import KerasProblem
from keras_hposgld.training.keras_problem import LAYER_STATES
from keras_hposgld.training.outer_logs import OuterLogs
from keras_hposgld.training.outer_loss import check_outputs
from keras_hposgld.training.outer_loss import loss_function
from keras_hposgld.training.overrides import outer_loss_of
from keras_hposgld.training.own_rules import OwnRules
from keras_hposgld.training.own_rules import without
from keras_hposgld.training.placement import Placement
from keras_hposgld.training.weight_copies import places_of
from keras_hposgld.training.weight_copies import WeightCopies


class OuterLevel(keras.layers.Layer):
    """The state of the outer level, saved with the layer it hangs on.

    Attributes:
        estimator: `HypergradientEstimator`.
        hyper_optimizer: Keras optimizer of the hyperparameters.
        outer_loss: Keras loss, a dictionary of them by output, or `None`.
        layer_state: `"carried"` or `"frozen"`.
        warmup_steps: Integer: chains that start before so many inner steps
            leave the hyperparameters alone.
        iterations: Variable, the number of outer iterations so far.
        observers: List of functions of an `Estimate`, called in each outer
            iteration, inside of its graph.
    """

    def __init__(self) -> None:
        super().__init__(name="outer_level", trainable=False)
        self.guard = update_guard.UpdateGuard()
        self.kept_copies = WeightCopies("memory")
        self.hyper_optimizer: Any = None
        self.observers: list[Callable] = []
        self._built_for = BuiltFor()
        self.iterations = self.add_weight(
            shape=(),
            initializer="zeros",
            dtype="int64",
            trainable=False,
            name="outer_iterations",
        )
        self.logs = OuterLogs()
        self.hyperprior = Hyperprior()
        self.own_rules = OwnRules()
        self.built = True

    def configure(
        self,
        estimator: Any,
        hyper_optimizer: Any,
        *,
        outer_loss: Any = None,
        layer_state: str = "carried",
        warmup_steps: int = 0,
        max_skipped_updates: int = 10,
        serves_all: bool = False,
    ) -> None:
        """Takes the arguments of `BilevelModel.compile`, see there.

        `serves_all`: also estimators that need no outer objective.
        """
        check_known("layer_state", layer_state, LAYER_STATES)
        self.estimator = estimators.get(estimator)
        if not serves_all:
            checks.check_judged(self.estimator)
        self.guard.max_skipped_updates = estimators.check_count(
            "max_skipped_updates", max_skipped_updates, 1
        )
        self.warmup_steps = estimators.check_count(
            "warmup_steps", warmup_steps, 0
        )
        if outer_loss is not None:
            loss_function(outer_loss)  # refuses what it cannot take
        self.outer_loss = outer_loss
        self.layer_state = layer_state
        previous = self.hyper_optimizer
        self.hyper_optimizer = keras.optimizers.get(
            hyper_optimizer or keras.optimizers.Adam(0.05)
        )
        if self.hyper_optimizer is not previous:
            checks.check_unused(self.hyper_optimizer)

    def prepare(
        self,
        model: keras.Model,
        owners: list,
        sampler: Sampler,
        initial_weights: tuple | list = (),
    ) -> None:
        """Checks the hyperparameters and builds what depends on them.

        Args:
            model: The user's `keras.Model`, built.
            owners: The objects that own its hyperparameters.
            sampler: `Sampler`, whose optimizer is built or not.
            initial_weights: Variables that are hyperparameters as well.

        Raises:
            ValueError: If there are no hyperparameters, if a learned loss has
                no outer loss beside it, if `outer_loss` names an unknown
                output, if the learning rate is too large for the bound of the
                strengths, or if an optimizer was built for other variables.
        """
        judge = (self.outer_loss, self.estimator)
        checks.check_owners(owners, initial_weights, *judge)
        check_outputs(self.outer_loss, model)
        self.hyperprior.owners = self.own_rules.owners = lambda: owners
        optimizer = sampler.keras_optimizer()
        checks.check_learning_rate(owners, sampler, self.estimator)
        weights = model.trainable_variables
        self._built_for.build("optimizer", optimizer, weights)
        self._built_for.build(
            "hyper_optimizer",
            self.hyper_optimizer,
            [*initial_weights, *variables_of(owners)],
        )
        if self.estimator.remembers:
            number = self.estimator.num_remembered(sampler.momentum)
            places = places_of(model)
            self.kept_copies.build_for(
                list(weights) * number,
                [f"{n}/{place}" for n in range(number) for place in places],
            )

    def read(self, data: Level, num_batches: int) -> bool:
        """Reads off the outer data what the priors have to know.

        Args:
            data: `Level`.
            num_batches: Integer, those that a chain draws.

        Returns:
            Whether that is new.
        """
        batch = num_batches * data.batch_size
        return self.hyperprior.read(
            data, lambda: (self.iterations.value + 1) * batch
        )

    def learn_from(
        self,
        estimate: estimators.Estimate,
        problem: KerasProblem,
        placement: Placement,
        sampler: Sampler,
        last_step: Any,
        only_if: Any = None,
    ) -> tf.Tensor:
        """One step with the hyperparameters, from what a chain estimated.

        Args are those of `run_outer_iteration`, and `last_step`, the number of
        the last step of the chain; it returns what `learn` returns.
        """
        inner, outer = update_guard.causes_of(problem, self.estimator, estimate)
        hypergradient = estimate.hypergradient
        needs_outer = self.estimator.needs_outer  # and priors are parts of it
        if self.hyperprior.exists and needs_outer:
            shares = SharesSeen(
                problem.weights,
                self.estimator,
                sampler,
                estimate.sampler_state,
                last_step,
            )
            loss = self.outer_loss or problem.trainer.loss
            hypergradient = self.hyperprior.added_to(
                hypergradient,
                problem.hyperparameters,
                loss_unit(loss, estimate.outer_loss),
                shares,
            )
        skipped = self.learn(
            problem.hyperparameters,
            hypergradient,
            self.own_rules.renewed(self, problem, sampler, estimate),
            placement=placement,
            causes=[*inner, *outer],
            also=lambda: assign_all(self.kept, estimate.kept),
            only_if=only_if,
        )
        if self.estimator.remembers:
            with tf.control_dependencies([skipped]):
                self.kept_copies.forget_if(skipped)
        if needs_outer:
            self.logs.loss.update_state(estimate.outer_loss)
        for observe in self.observers:
            observe(estimate)
        return skipped

    def learn(
        self,
        hyperparameters: list,
        hypergradient: list,
        renewed: Sequence = (),
        *,
        placement: Placement,
        causes: list,
        also: Callable = lambda: None,
        only_if: Any = None,
    ) -> tf.Tensor:
        """One guarded step with the hyperparameters; counts the iteration.

        Args:
            hyperparameters: List of variables.
            hypergradient: List of tensors shaped like them.
            renewed: Pairs of a variable and its next value, of those that
                follow a rule of their own.
            placement: `OneReplica` or `Replicas`: where the variables are.
            causes: Pairs of a name and a tensor that the hypergradient rests
                on; if one of them is not finite, nothing is assigned.
            also: Function without arguments: what else to assign.
            only_if: Boolean tensor: whether the hyperparameters move. `None`
                (default): they do.

        Returns:
            1 if the update was skipped, else 0.
        """

        followed = without(renewed, hyperparameters, hypergradient)

        def step() -> None:
            placement.apply(self.hyper_optimizer, followed, hyperparameters)
            for variable, value in renewed:
                variable.assign(value)

        def update() -> None:
            also()
            if only_if is None:
                step()
            else:
                tf.cond(only_if, step, lambda: None)

        effects = update_guard.named(
            "the hypergradient of", hyperparameters, hypergradient
        )
        # Adam squares it: 1e20 is finite in float32, its square is not, and
        # the second moment would turn the hyperparameters into no numbers.
        norm = tf.linalg.global_norm(hypergradient)
        effects += [(f"the next {v.path!r}", new) for v, new in renewed]
        effects.append(("the squared norm of the hypergradient", norm))
        skipped = self.guard.run_if_finite(update, [*causes, *effects])
        with tf.control_dependencies([skipped]):
            self.iterations.assign_add(1)
        self.logs.norm.update_state(norm)
        self.logs.skips.update_state(skipped)
        return skipped

    def end(self, hyperparameters: list) -> None:
        """What Keras's `fit` does with weights at its end: it takes averages.

        Args:
            hyperparameters: List of variables, as the optimizer was built for.
        """
        if self.hyper_optimizer.use_ema:
            self.hyper_optimizer.finalize_variable_values(hyperparameters)

    @property
    def kept(self) -> list:
        """The variables of what the estimator keeps from chain to chain."""
        return self.kept_copies.values if self.estimator.remembers else []

    def loss(self, trainer: keras.Model) -> Callable:
        """The outer loss, a function `(y, y_pred, sample_weight)`."""
        if self.outer_loss is None:
            return outer_loss_of(trainer)
        names = getattr(trainer, "output_names", None)
        return loss_function(self.outer_loss, names)


def assign_all(variables: list, values: list) -> None:
    """Assigns to each variable its value."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
