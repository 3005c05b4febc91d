"""How much memory learning takes, told before it is taken."""

import pathlib
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.estimators import HypergradientEstimator
from keras_hposgld.samplers import Sampler


class MemoryEstimate(NamedTuple):
    """Bytes, by what they are for.

    Attributes:
        weights: The model's weights, and what is kept from chain to chain:
            copies of them, the posterior samples included, and the state of
            the sampler.
        hyperparameters: The unconstrained variables.
        optimizers: The state of the optimizer of the hyperparameters.
        chain: What the estimator holds at its peak.
        total: The sum. Activations and batches come on top of it.
        samples: What of `weights` is kept posterior samples.
    """

    weights: int
    hyperparameters: int
    optimizers: int
    chain: int
    total: int
    samples: int = 0

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name} {number / 2**20:,.0f} MiB"
            for name, number in self._asdict().items()
            if name != "samples"
        )
        remark = "activations and batches come on top"
        if self.samples:
            samples = f"{self.samples / 2**20:,.0f} MiB"
            remark += f"; {samples} of the weights are posterior samples"
        return f"{parts} ({remark})"


def estimate_memory(
    weights: list,
    copies: list,
    hyperparameters: list,
    optimizer_variables: list,
    estimator: HypergradientEstimator,
    sampler: Sampler,
    waiting: Sequence = (),
    samples: Sequence = (),
) -> MemoryEstimate:
    """Adds up what is known of a run before it begins.

    Args:
        weights: The trainable variables.
        copies: Variables that are copies of them.
        hyperparameters: List of variables.
        optimizer_variables: The state of their optimizer.
        estimator: `HypergradientEstimator`.
        sampler: `Sampler`, whose state is in variables, and in the chain before
            and after a step.
        waiting: Variables of which a second value waits for the chains of
            other folds, before it is assigned.
        samples: Variables that hold posterior samples of the weights.
    """
    slots = [v for part in sampler.state_variables.values() for v in part]
    weight_bytes, hyper_bytes = size_of(weights), size_of(hyperparameters)
    number = sum(
        variable.shape.num_elements() for variable in _values(hyperparameters)
    )
    per_weight, per_hyperparameter = estimator.copies_in_chain(number)
    per_hyperparameter += sampler.solves_quadratic  # the chain holds them
    parts = (
        weight_bytes + size_of([*copies, *samples]) + size_of(slots),
        hyper_bytes,
        size_of(optimizer_variables),
        per_weight * weight_bytes
        + per_hyperparameter * hyper_bytes
        + 2 * size_of(slots)
        + size_of(waiting),
    )
    return MemoryEstimate(*parts, sum(parts), size_of(samples))


def size_of(variables: Sequence) -> int:
    """The bytes that variables hold."""
    return sum(
        value.shape.num_elements() * value.dtype.size
        for value in _values(variables)
    )


def _values(variables: Sequence) -> list:
    return [variable.value for variable in variables]


def available_memory() -> int | None:
    """The bytes that a process on the CPU can still get; `None` if unknown.

    TensorFlow does not tell how much a GPU or TPU has.
    """
    meminfo = pathlib.Path("/proc/meminfo")
    if tf.config.list_physical_devices("GPU") or not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def warn_if_too_much(estimate: MemoryEstimate, batches: int) -> None:
    """Warns of a run that is not going to fit; weights are there already.

    Args:
        estimate: `MemoryEstimate`.
        batches: The bytes of the batches that are held at a time.
    """
    available = available_memory()
    if available is None or estimate.chain + batches <= available:
        return
    advice = (
        "Take shorter chains or smaller batches."
        if batches > estimate.chain
        else 'Take a coarser granularity, or another estimator ("hpo_sgld" '
        "needs the least)."
    )
    warnings.warn(
        "Learning the hyperparameters is going to need more memory than there "
        f"is: {estimate}; the batches of two chains {batches / 2**20:,.0f} "
        f"MiB. Available: {available / 2**20:,.0f} MiB. {advice}",
        stacklevel=3,
    )
