"""Hyperparameters that follow the weights by rules of their own."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.estimators import Estimate
from keras_hposgld.hyperparameters.first_weights import first_weights
from keras_hposgld.hyperparameters.first_weights import is_one_linear_layer
from keras_hposgld.hyperparameters.own_rules import Beginning
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.samplers import Sampler
from keras_hposgld.samplers.noise import fold_in


class OwnRules:
    """Asks those that own hyperparameters for their next values.

    Attributes:
        is_linear: Whether the weights of the model are those of one layer.
    """

    owners: Callable = staticmethod(lambda: [])
    is_linear = False

    def begin(self, model: keras.Model, sampler: Sampler) -> None:
        """Prepares them for the first chain of a `fit`.

        Args:
            model: The user's `keras.Model`, built.
            sampler: `Sampler`, at the temperature of the chain.
        """
        first = {id(weight) for weight in first_weights(model)}
        self.is_linear = is_one_linear_layer(model)
        owners = self.owners()
        has_noise = any(o.noise_deviation() is not None for o in owners)
        beginning = Beginning(
            sampler.law_temperature or 0.0,
            lambda weight: id(weight) in first,
            # Beside classes that can be told apart without a fault nothing
            # would hold a scale: the larger the weights, the better.
            self.is_linear and has_noise,
            sampler.solves_quadratic,
        )
        for owner in owners:
            owner.begin_rule(beginning)

    def renewed(
        self,
        level: Any,
        problem: Any,
        sampler: Sampler,
        estimate: Estimate,
    ) -> list:
        """Pairs of a variable and its next value, of all that have a rule.

        Args:
            level: `OuterLevel`.
            problem: `KerasProblem`.
            sampler: `Sampler`, at the temperature of the chain.
            estimate: `Estimate`.
        """
        rule = self._rule(level.estimator)
        if level.estimator.needs_outer or rule == "optimizer":
            return []
        weights = {
            id(weight): value
            for weight, value in zip(
                problem.weights, estimate.params, strict=True
            )
        }
        slopes = {
            id(variable): slope
            for variable, slope in zip(
                problem.hyperparameters, estimate.hypergradient, strict=True
            )
        }
        end = _chain_end(
            *(level, problem, sampler, rule, estimate.squared_errors),
            weight=lambda weight: weights[id(weight)],
            slope=lambda variable: slopes[id(variable)],
        )
        pairs: list = []
        for owner in self.owners():
            pairs += owner.renewed(end) or []
        return pairs

    def draw_latents(self, level: Any, problem: Any, sampler: Sampler) -> None:
        """Draws what stands beside the hyperparameters, at the weights now.

        Args:
            level: `OuterLevel`, once it has learned from a chain.
            problem: `KerasProblem`.
            sampler: `Sampler`, at the temperature of the chain.
        """
        if level.estimator.needs_outer:
            return
        end = _chain_end(
            *(level, problem, sampler, self._rule(level.estimator)),
            weight=lambda weight: weight,
            slope=lambda variable: None,
        )
        for owner in self.owners():
            owner.draw_latents(end)

    def _rule(self, estimator: Any) -> str:
        """The rule that is meant."""
        rule = getattr(estimator, "update", "optimizer")
        if rule != "auto":
            return rule
        # Draws given the weights mix fast where the weights do. In a network
        # a rule that comes to rest was better on four sets of five.
        return "gibbs" if self.is_linear else "gradient"


def _chain_end(
    level: Any,
    problem: Any,
    sampler: Sampler,
    rule: str,
    squared_errors: Any = None,
    **at: Any,
) -> ChainEnd:
    places = {id(v): n for n, v in enumerate(problem.hyperparameters)}
    number = level.iterations.value
    # Apart from the noise of the weights, which is of the same seed.
    seed = fold_in(tf.bitwise.invert(sampler.chain_seed), number)

    def seed_of(variable: Any, purpose: int = 0) -> tf.Tensor:
        # By its place: its name is another in each process.
        return fold_in(fold_in(seed, places[id(variable)]), purpose)

    return ChainEnd(
        rule=rule,
        temperature=sampler.law_temperature,
        number=number,
        seed_of=seed_of,
        squared_errors=squared_errors,
        **at,
    )


def without(renewed: Any, hyperparameters: list, hypergradient: list) -> list:
    """The hypergradient that an optimizer is to follow: of the others."""
    own = {id(variable) for variable, _ in renewed}
    return [
        tf.zeros_like(slope) if id(variable) in own else slope
        for variable, slope in zip(hyperparameters, hypergradient, strict=True)
    ]
