"""What every hypergradient estimator is: three pure functions of a chain.

`init` makes the state of a chain, `step` advances it by one inner step,
`finish` reads the hypergradient off it. An estimator knows neither the loop
that runs it (`driver.py`) nor Keras models, and all that it handles are flat
lists of tensors. To add one, write a module with a subclass of
`HypergradientEstimator` that is registered with `@register("alias")`, and
import it in `estimators/__init__.py`.
"""

import abc
import warnings
from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_hposgld.core.problem import BilevelProblem
from keras_hposgld.samplers.sgld import SGLD


class Estimate(NamedTuple):
    """What an estimator returns.

    Attributes:
        hypergradient: Structure of tensors like the hyperparameters, the
            estimate of the derivative of the expected outer objective.
        params: Structure of tensors, where the chain ended.
        inner_loss: Scalar, mean of the inner objective over the samples,
            each evaluated where the step to the sample began.
        outer_loss: Scalar, mean of the outer objective over the samples.
        standard_error: Scalar, the Monte Carlo error of the hypergradient's
            length along this chain, by batch means. It knows nothing of a
            bias. `None` where the estimate rests on one sample, or where the
            start of the chain depends on the hyperparameters.
        carry: What the inner objective carried, after the last step.
        residual: Scalar, the relative residual of the linear system that the
            estimator solved; `None` where it solves none.
        memory: List of tensors that the estimator would start its next chain
            with, see `HypergradientEstimator.remembers`.
        outer_losses: Tensor `(num_samples,)`, the outer objective at each
            sample, for diagnostics of the chain. `None` where the estimate
            rests on one sample.
    """

    hypergradient: Any
    params: Any
    inner_loss: tf.Tensor
    outer_loss: tf.Tensor
    standard_error: tf.Tensor | None = None
    carry: Any = None
    residual: tf.Tensor | None = None
    memory: Any = ()
    outer_losses: tf.Tensor | None = None


class Chain(NamedTuple):
    """What stays fixed while a chain runs.

    Attributes:
        problem: `BilevelProblem` over flat lists.
        hyperparameters: List of tensors.
        sampler: `SGLD`.
        first_step: Integer, or integer tensor: the number of steps that the
            sampler took before this chain. Schedules and noise go on from it.
        seed: Integer tensor of shape `(2,)`.
        memory: What the estimate of the chain before this one had as its
            `memory`; empty at first, or where nothing is remembered.
        names: Tuple of strings, what to call the hyperparameters in messages.
        average: Function from a list of tensors to their means over the
            replicas; the identity where there is one.
    """

    problem: BilevelProblem
    hyperparameters: list
    sampler: SGLD
    first_step: Any
    seed: tf.Tensor
    memory: Any = ()
    names: tuple = ()
    average: Callable = lambda tensors: tensors

    def mean(self, *lists: list) -> list:
        """The means over the replicas of lists of tensors, `None` kept.

        Returns:
            As many lists; of one list, its means.
        """
        given = [t for tensors in lists for t in tensors if t is not None]
        means = iter(self.average(given) if given else ())
        results = [
            [None if t is None else next(means) for t in tensors]
            for tensors in lists
        ]
        return results[0] if len(lists) == 1 else results

    def settle(self, gradient: list) -> list:
        """The gradient that all replicas follow: averaged, then clipped."""
        return self.sampler.clip(self.mean(gradient))

    def move(self, params: list, gradients: list, index) -> list:
        """The params after inner step number `index` of the chain."""
        step = self.first_step + index
        return self.sampler.move(params, gradients, step, self.seed)

    def learning_rate(self, index, dtype) -> tf.Tensor:
        """The learning rate of inner step number `index` of the chain."""
        return self.sampler.learning_rate_at(self.first_step + index, dtype)

    def report_unused(self, mixed: list, direct: list) -> None:
        """Warns of hyperparameters that neither objective depends on.

        Args:
            mixed: Products with the mixed derivative, `None` where there is
                no dependence.
            direct: Derivatives of the outer objective, likewise.
        """
        if self.problem.initial_params is not None:
            return  # the start may depend on them
        unused = [
            self.names[position] if self.names else f"number {position}"
            for position, parts in enumerate(zip(mixed, direct, strict=True))
            if parts == (None, None)
        ]
        if unused:
            warnings.warn(
                "The hypergradient is zero for hyperparameters that neither "
                "the gradient of the inner objective nor the outer objective "
                f"depends on: {', '.join(unused)}.",
                stacklevel=2,
            )


class HypergradientEstimator(abc.ABC):
    """The contract of an estimator.

    Attributes:
        num_steps: Integer, the length of its chain.
        serves_replicas: Whether it averages all that it takes from a batch, by
            `Chain.mean`, and has no loop of its own.
        remembers: Whether its estimates come with a `memory`, tensors shaped
            like the params, for the next chain to start with.
    """

    num_steps: int
    remembers: bool = False
    serves_replicas: bool = False

    @abc.abstractmethod
    def init(self, chain: Chain, params: list) -> NamedTuple:
        """The state before the first step, from the starting params."""

    @abc.abstractmethod
    def step(
        self, chain: Chain, state, index, inner_batch, outer_batch
    ) -> NamedTuple:
        """The state after inner step number `index`, counted from 0."""

    @abc.abstractmethod
    def finish(
        self, chain: Chain, state, inner_batches, outer_batches
    ) -> Estimate:
        """The estimate, from the state after `num_steps` steps.

        It gets the batches of all steps again, for those that look back.
        """

    @abc.abstractmethod
    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        """How many vectors of both sizes a chain holds at its peak.

        Args:
            num_hyperparameters: Integer.

        Returns:
            The number of those of the size of the weights, and of the size of
            the hyperparameters.
        """

    @abc.abstractmethod
    def get_config(self) -> dict:
        """The constructor's arguments."""

    @classmethod
    def from_config(cls, config: dict) -> "HypergradientEstimator":
        return cls(**config)

    def __repr__(self):
        arguments = (f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({', '.join(arguments)})"


_ALIASES: dict[str, type] = {}


def register(alias: str) -> Callable[[type], type]:
    """Makes an estimator known to `get` and to Keras's serialization."""

    def decorate(cls):
        _ALIASES[alias] = cls
        return keras.saving.register_keras_serializable("keras_hposgld")(cls)

    return decorate


def get(identifier) -> HypergradientEstimator:
    """Returns an estimator, from an instance, an alias or a config.

    Args:
        identifier: `HypergradientEstimator`, a string such as `"hpo_sgld"`
            (the estimator with its defaults), or what `serialize` returned.

    Raises:
        ValueError: If the string is no known alias.
        TypeError: If `identifier` is something else.
    """
    if isinstance(identifier, HypergradientEstimator):
        return identifier
    if isinstance(identifier, str):
        if identifier not in _ALIASES:
            raise ValueError(
                f"Unknown estimator. Received: {identifier!r}. "
                f"Known aliases: {sorted(_ALIASES)}."
            )
        return _ALIASES[identifier]()
    if isinstance(identifier, dict):
        return deserialize(identifier)
    raise TypeError(
        "An estimator is a `HypergradientEstimator`, an alias or a config. "
        f"Received: {identifier!r} of type {type(identifier).__name__}."
    )


def serialize(estimator: HypergradientEstimator) -> dict:
    """Returns a JSON-able dictionary from which `deserialize` rebuilds."""
    return keras.saving.serialize_keras_object(estimator)


def deserialize(config: dict) -> HypergradientEstimator:
    """Rebuilds an estimator from what `serialize` returned."""
    return keras.saving.deserialize_keras_object(config)


def batch_at(batches, index):
    """The batch of one step, from stacked batches (or `None`)."""
    return tf.nest.map_structure(
        lambda x: None if x is None else tf.gather(x, index), batches
    )


def refuse_moving_start(estimator, problem: BilevelProblem, why: str) -> None:
    """Refuses problems whose chain starts at a function of hyperparameters."""
    if problem.initial_params is not None:
        raise ValueError(
            f"`{type(estimator).__name__}` cannot serve a problem with "
            f"`initial_params`: {why}. Received: estimator={estimator!r}. Use "
            '"hpo_sgld", "rmd" or "fmd".'
        )


def check_count(name: str, value, minimum: int) -> int:
    """Checks an integer argument of an estimator and returns it."""
    if isinstance(value, bool) or value != value or int(value) != value:
        raise ValueError(
            f"`{name}` must be an integer. Received: {name}={value!r}."
        )
    if value < minimum:
        raise ValueError(
            f"`{name}` must be at least {minimum}. Received: {name}={value}."
        )
    return int(value)


def check_number(name: str, value, zero_allowed: bool = True) -> float:
    """Checks a float argument of an estimator and returns it."""
    in_range = value >= 0 if zero_allowed else value > 0
    if not (in_range and value < float("inf")):
        bound = "0 or above" if zero_allowed else "above 0"
        raise ValueError(
            f"`{name}` must be a finite number {bound}. "
            f"Received: {name}={value}."
        )
    return float(value)
