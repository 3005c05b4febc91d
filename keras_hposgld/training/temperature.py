"""The temperature of a chain whose law is the posterior of its training data.

With a loss that is a mean over n examples it is 1/n: exp(-n times the mean) is
the product of the likelihoods. `fit` sets it for each chain, and leaves the
sampler as the user has made it, so that it is right again for other data.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from keras_hposgld.data.level import Level
from keras_hposgld.samplers import Sampler


def of_posterior(sampler: Sampler, level: Level) -> float | None:
    """The temperature that `fit` gives a sampler; `None`: it has its own.

    Args:
        sampler: `Sampler`. A temperature above 0 is the user's own.
        level: `Level`, the training data.

    Raises:
        ValueError: If the sampler has no noise, or if nobody knows how many
            examples there are.
    """
    with at(sampler, temperature=1.0):
        of_law = sampler.law_temperature
    if not of_law:
        raise ValueError(
            "`optimizer` must be a sampler with noise, where the training data "
            "alone are learned from. Received: "
            f"optimizer={sampler!r}, whose law has no temperature. Use "
            '`SGLD(learning_rate, integrator="exponential")`.'
        )
    if sampler.law_temperature:
        return None
    number = level.count_examples()
    if math.isinf(number):
        raise ValueError(
            "The number n of training examples must be known, for the "
            f"temperature 1/n. Received: `{level.name}` that never ends, or "
            "that could not be counted. Pass `SGLD(temperature=1 / n)`, or "
            "arrays."
        )
    return 1.0 / (number * of_law)


def momentum_for(
    sampler: Sampler, level: Level, has_mixtures: bool = False
) -> float | None:
    """The momentum that `fit` gives a sampler; `None`: it has its own.

    With minibatches a momentum that nobody asked for would heat the chain: the
    noise of the gradients adds up over the steps that it remembers. So it does
    where the curvatures of L1 penalties are drawn anew: the velocity goes on
    with a law that belongs to the old ones, and near zero the variance of a
    weight becomes 7 % too large.

    Args:
        sampler: `Sampler`.
        level: `Level`, the training data.
        has_mixtures: Whether there are such penalties.
    """
    if not sampler.takes_step_sizes or sampler.given_momentum is not None:
        return None
    is_exact = level.batches_per_pass <= 1 and not has_mixtures
    return None if is_exact else 0.0


def share_of_step(sampler: Sampler, level: Level) -> float:
    """What `fit` makes of the step sizes of a sampler.

    The noise of minibatches heats what the loss is steepest in, at the largest
    step that is stable by n / (2 b) times the temperature. Steps that are
    smaller by as much leave it at about twice the temperature there, and next
    to none elsewhere. A momentum remembers 1 / (1 - mu) steps.

    Args:
        sampler: `Sampler`.
        level: `Level`, the training data.
    """
    batches = level.batches_per_pass
    if not sampler.takes_step_sizes or batches <= 1 or math.isinf(batches):
        return 1.0
    momentum = sampler.given_momentum or 0.0
    return min(1.0, 2.0 * (1.0 - momentum) / batches)


@contextlib.contextmanager
def at(sampler: Any, **settings: Any) -> Iterator[None]:
    """Lets a sampler have other settings for a while.

    Args:
        sampler: `Sampler`.
        **settings: Values of its attributes, such as `temperature`; `None`
            for its own. An attribute that it does not have is left out.
    """
    own = {
        name: getattr(sampler, name)
        for name, value in settings.items()
        if value is not None and hasattr(sampler, name)
    }
    try:
        for name in own:
            setattr(sampler, name, settings[name])
        yield
    finally:
        for name, value in own.items():
            setattr(sampler, name, value)
