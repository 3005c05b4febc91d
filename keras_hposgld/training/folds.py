"""Chains side by side, a fold of the examples each, that share the strengths.

Each fold has weights, layer state, state of the sampler and what its estimator
remembers of its own. In the first fold they are the model's own variables; of
the other folds there are copies. The chains run one after the other, on the
same noise, and are one function in the graph, which is called once a fold.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.loop import batch_at
from keras_hposgld.estimators import Estimate
from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.training.keras_problem import tensors
from keras_hposgld.training.outer_level import assign_all
from keras_hposgld.training.weight_copies import places_of
from keras_hposgld.training.weight_copies import WeightCopies


def state_of_chain(
    weights: list, layer_variables: list, sampler: Any, kept: list
) -> dict:
    """The variables that go on from chain to chain, by what they are.

    Args:
        weights: List of variables, the trainable weights.
        layer_variables: List of variables, the other state of layers.
        sampler: `Sampler`, its optimizer built.
        kept: List of variables: what the estimator remembers.
    """
    return {
        "weights": list(weights),
        "layers": list(layer_variables),
        "kept": list(kept),
        **{
            f"sampler/{slot}": list(variables)
            for slot, variables in sampler.state_variables.items()
        },
    }


class FoldCopies(WeightCopies):
    """That state for each fold but the first, saved with the learner."""

    def __init__(self) -> None:
        super().__init__("folds")

    def build_for_folds(
        self, number: int, model: keras.Model, state: dict
    ) -> None:
        """Creates the copies for that many folds; drops those of others.

        Args:
            number: Integer. For 1 there are none.
            model: `keras.Model`, whose weights give the names.
            state: What `state_of_chain` returned.
        """
        names = _names(model, state)
        variables = [v for part in state.values() for v in part]
        self.build_for(
            variables * (number - 1),
            [f"{n}/{name}" for n in range(1, number) for name in names],
        )

    def begin(self, state: dict) -> None:
        """Gives folds without a state of their own that of the first one."""
        variables = [v for part in state.values() for v in part]
        self.remember(variables * (len(self.names) // len(variables)))

    def forget_sampler(self) -> None:
        """Lets the sampler of each fold begin as that of the first one."""
        self.remembered = {n for n in self.remembered if "/sampler/" not in n}

    def load_own_variables(self, store: Any) -> None:
        if not store.keys():  # of a version without folds
            return
        super().load_own_variables(store)
        if "1" not in store.keys():  # saved without folds, or after a refit
            self.build_for([], [])
            self._is_set.assign(store["0"])


def _names(model: keras.Model, state: dict) -> list[str]:
    """A name for each variable of a fold, by its place where it has one."""
    addresses, places = weight_addresses(model), places_of(model)
    names = []
    for part, variables in state.items():
        for index, variable in enumerate(variables):
            place = addresses.get(id(variable), str(index))
            if part not in ("weights", "layers"):  # for each weight one or more
                turn, index = divmod(index, len(places))
                place = f"{turn}/{places[index]}"
            names.append(f"{part}/{place}")
    return names


class Folds:
    """The chains of one outer iteration.

    Args:
        state: What `state_of_chain` returned, of the first fold.
        metrics: List of variables, the state of the metrics, which follow the
            chains one after the other.
        copies: List of variables, those of the other folds; empty for one
            chain on all inner examples.
    """

    def __init__(self, state: dict, metrics: list, copies: list):
        self.state = state
        self.metrics = metrics
        variables = [v for part in state.values() for v in part]
        rest = iter(copies)
        self.others = [
            {name: [next(rest) for _ in part] for name, part in state.items()}
            for _ in range(len(copies) // max(1, len(variables)))
        ]

    @classmethod
    def of_problem(
        cls, problem: Any, sampler: Any, kept: list, copies: list
    ) -> "Folds":
        """Those of a `KerasProblem`, with the other arguments as above."""
        state = state_of_chain(
            problem.weights, problem.layer_variables, sampler, kept
        )
        return cls(state, problem.metrics_variables, copies)

    def run(
        self, chain: Callable, inner_batches: Any, outer_batches: Any
    ) -> list[Estimate]:
        """The estimate of each fold.

        Args:
            chain: Function of the stacked batches of both levels to an
                `Estimate`. It reads the variables of the first fold.
            inner_batches: Structure of tensors, with folds on a leading axis
                if there are several.
            outer_batches: Structure of tensors, likewise.
        """
        if not self.others:
            return [chain(inner_batches, outer_batches)]

        def one(state: dict, metrics: list, *batches: Any) -> Estimate:
            given = list(zip(self.metrics, metrics, strict=True))
            for name, variables in self.state.items():
                given += zip(variables, state[name], strict=True)
            with keras.StatelessScope(given):
                return chain(*batches)

        if not tf.executing_eagerly():
            one = tf.function(
                one,
                autograph=False,
                experimental_attributes={"_noinline": True},
            )
        metrics = tensors(self.metrics)
        estimates = []
        for fold, variables in enumerate([self.state, *self.others]):
            state = {name: tensors(part) for name, part in variables.items()}
            estimate = one(
                state,
                metrics,
                batch_at(inner_batches, fold),
                batch_at(outer_batches, fold),
            )
            metrics = estimate.carry[1]
            estimates.append(estimate)
        return estimates

    def mean(self, estimates: list[Estimate]) -> Estimate:
        """The means over the folds, not finite if any of them is not.

        The standard error becomes an upper bound, since noise is shared.
        What is kept and the layer state are those of the first fold, metrics
        are those after the last one.
        """
        first, last = estimates[0], estimates[-1]
        if not self.others:
            return first
        mean = tf.nest.map_structure(_mean, *estimates)
        return mean._replace(
            kept=first.kept, carry=(first.carry[0], last.carry[1])
        )

    def move_others(self, estimates: list[Estimate]) -> None:
        """Assigns what the chains of the other folds have come to."""
        for fold, end in zip(self.others, estimates[1:], strict=True):
            assign_all(fold["weights"], end.params)
            assign_all(fold["layers"], end.carry[0])
            for slot, values in end.sampler_state.items():
                name = f"sampler/{slot}"
                if name in fold:  # each chain is told the curvature anew
                    assign_all(fold[name], values)

    def remember(self, estimates: list[Estimate], skipped: tf.Tensor) -> None:
        """Keeps what they remember, or zeros if the update was skipped."""
        for fold, end in zip(self.others, estimates[1:], strict=True):
            for variable, value in zip(fold["kept"], end.kept, strict=True):
                keeps = tf.cast(1.0 - skipped, value.dtype)
                variable.assign(tf.math.multiply_no_nan(value, keeps))


def _mean(*parts: Any) -> Any:
    if parts[0] is None or not parts[0].dtype.is_floating:
        return parts[0]
    return tf.add_n(parts) / len(parts)
