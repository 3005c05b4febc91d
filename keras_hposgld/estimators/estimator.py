"""What every hypergradient estimator is: pure functions of a chain.

`init` makes the state of a chain, `step` advances it by one inner step,
`finish` reads the hypergradient off it. An estimator that looks back, or solves
a linear system at the end, has a second loop: `turn` prepares it, `close` is
one step of it. An estimator knows neither the loops that run it (`driver.py`)
nor Keras models, and all that it handles are flat lists of tensors.
"""

import abc
import inspect
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.problem import BilevelProblem
from keras_hposgld.estimators.chain import Chain


class Estimate(NamedTuple):
    """What an estimator returns.

    Attributes:
        hypergradient: Structure of tensors like the hyperparameters, the
            estimate of the derivative of the expected outer objective.
        params: Structure of tensors, where the chain ended.
        inner_loss: Scalar, mean of the inner objective over the samples,
            each evaluated where the step to the sample began.
        outer_loss: Scalar, mean of the outer objective over the samples. `None`
            where the estimator needs no outer objective.
        standard_error: Scalar, the Monte Carlo error of the hypergradient's
            length along this chain, by batch means. It does not include a bias,
            and for short chains it is a lower bound. `None` where the estimate
            rests on one sample, or where the start of the chain depends on the
            hyperparameters.
        carry: What the inner objective carried, after the last step.
        residual: Scalar, the relative residual of the linear system that the
            estimator solved, infinite if it diverged; `None` where it solves
            none.
        kept: List of tensors that the estimator would start its next chain
            with, see `HypergradientEstimator.remembers`.
        outer_losses: Tensor `(num_samples,)`, the outer objective at each
            sample, for diagnostics of the chain. `None` where the estimate
            rests on one sample, or needs no outer objective.
        sampler_state: The state of the sampler, after the last step.
        equipartition: Tensor with a number for each of the params, the mean
            over the chain and over the param of `w dL_T/dw`, over the
            temperature: 1 under the law, more where the steps heat it. `None`
            where the estimator does not look.
        squared_errors: Pair of scalars: the sum of the squared errors of the
            params, and of how many targets. `None`, unless the params were
            drawn from their Gaussian law given the hyperparameters.
        inner_range: Pair of scalars, the inner objective at the first step and
            its largest value in the chain, or `None` likewise.
        num_steps: Scalar integer tensor: the steps that the sampler has taken,
            those of previous chains included. Set by `hypergradient`.
    """

    hypergradient: Any
    params: Any
    inner_loss: tf.Tensor
    outer_loss: tf.Tensor | None
    standard_error: tf.Tensor | None = None
    carry: Any = None
    residual: tf.Tensor | None = None
    kept: Any = ()
    outer_losses: tf.Tensor | None = None
    sampler_state: Any = ()
    equipartition: tf.Tensor | None = None
    inner_range: tuple | None = None
    squared_errors: Any = None
    num_steps: tf.Tensor | None = None

    @property
    def memory(self) -> Any:
        """The name of `kept` in version 0.1.0."""
        return self.kept


class HypergradientEstimator(abc.ABC):
    """The contract of an estimator.

    Attributes:
        num_steps: Integer, the length of its chain.
        num_closing_steps: Integer, the length of its second loop. Defaults to
            `0`.
        takes_single_steps: Whether its steps may come one at a time, as those
            of a training do: `step` and `finish` need the batch of now, and
            look at no other weights. Defaults to `False`.
        serves_replicas: Whether it averages all that it takes from a batch, by
            `Chain.mean` and the other methods of `Chain`, outside of any loop
            of its own.
        needs_outer: Whether it differentiates the outer objective. Defaults to
            `True`.
        remembers: Whether its estimates come with what it has `kept`, lists
            shaped like the params, for the next chain to start with.
        residual_name: String, what messages call `Estimate.residual` where it
            is not finite. `None` (default): it says nothing about the
            hypergradient.
    """

    num_steps: int
    num_closing_steps: int = 0
    takes_single_steps: bool = False
    needs_outer: bool = True
    remembers: bool = False
    serves_replicas: bool = False
    residual_name: str | None = None

    def check_problem(self, problem: BilevelProblem) -> None:
        """Refuses a problem that lacks what the estimator needs.

        Whatever runs a chain calls it before the first step.

        Args:
            problem: `BilevelProblem`.

        Raises:
            ValueError: If there is no outer objective, and it needs one.
        """
        if self.needs_outer and problem.outer_objective is None:
            raise ValueError(
                f"`{type(self).__name__}` needs a problem with an "
                "`outer_objective`, which it differentiates. Received: "
                "outer_objective=None. Pass one to `BilevelProblem`, or use "
                '"evidence", which learns from the inner objective alone.'
            )

    @abc.abstractmethod
    def init(self, chain: Chain, params: list) -> NamedTuple:
        """The state before the first step, from the starting params."""

    @abc.abstractmethod
    def step(
        self,
        chain: Chain,
        state: Any,
        index: Any,
        inner_batch: Any,
        outer_batch: Any,
    ) -> NamedTuple:
        """The state after inner step number `index`, counted from 0."""

    def turn(
        self, chain: Chain, state: Any, inner_batches: Any, outer_batches: Any
    ) -> Any:
        """The state before the second loop, from the one after the chain."""
        return state

    def close(
        self,
        chain: Chain,
        state: Any,
        number: Any,
        inner_batches: Any,
        outer_batches: Any,
    ) -> Any:
        """The state after step `number` of the second loop, from 0."""
        return state

    @abc.abstractmethod
    def finish(
        self, chain: Chain, state: Any, inner_batches: Any, outer_batches: Any
    ) -> Estimate:
        """The estimate, from the state after the last step.

        It gets the batches of all steps again, for those that look back.
        """

    def share_seen(self, rate: tf.Tensor, momentum: float) -> tf.Tensor:
        """How much of the derivative by a strength an estimate holds.

        By default all of it; see `share_seen.py`.

        Args:
            rate: Tensor: by what part of its distance from rest a pull moves a
                weight in a step.
            momentum: Float, that of the pull.

        Returns:
            Tensor like `rate`.
        """
        return tf.ones_like(rate)

    def num_remembered(self, momentum: float) -> int:
        """How many vectors of the size of the weights `kept` holds."""
        return 1 + (momentum > 0) if self.remembers else 0

    @abc.abstractmethod
    def copies_in_chain(self, num_hyperparameters: int) -> tuple[int, int]:
        """How many vectors of both sizes a chain holds at its peak.

        What the sampler's state takes comes on top.

        Args:
            num_hyperparameters: Integer.

        Returns:
            The number of those of the size of the weights, and of the size of
            the hyperparameters.
        """

    def get_config(self) -> dict:
        """The constructor's arguments, stored under their own names."""
        arguments = inspect.signature(type(self).__init__).parameters
        return {
            name: getattr(self, name) for name in arguments if name != "self"
        }

    @classmethod
    def from_config(cls, config: dict) -> "HypergradientEstimator":
        """Rebuilds an estimator from what `get_config` returned."""
        return cls(**config)

    def __repr__(self) -> str:
        arguments = (f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({', '.join(arguments)})"
