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
    with at(sampler, 1.0):
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


@contextlib.contextmanager
def at(sampler: Any, temperature: float | None) -> Iterator[None]:
    """Lets a sampler have a temperature for a while.

    Args:
        sampler: `Sampler`. One without an attribute `temperature` stays as it
            is.
        temperature: Float; `None` for its own.
    """
    if temperature is None or not hasattr(sampler, "temperature"):
        yield
        return
    own = sampler.temperature
    sampler.temperature = temperature
    try:
        yield
    finally:
        sampler.temperature = own
