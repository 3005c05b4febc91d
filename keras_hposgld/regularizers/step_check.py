"""Whether a step of the sampler can follow the strongest pull."""

from typing import Any


def check_step(owner: Any, learning_rate: float, scale: float) -> None:
    """Refuses a sampler whose step the strongest pull would overshoot.

    Args:
        owner: `LearnableRegularizer`.
        learning_rate: Float, that of the sampler.
        scale: Float, by how much a step of the sampler may exceed it.

    Raises:
        ValueError: If the step times `max_value` is 1 or above.
    """
    largest = learning_rate * scale
    if largest * owner.max_value < 1.0:
        return
    exceeding = "" if scale == 1.0 else f", exceeded by {scale:.3g}"
    raise ValueError(
        "`learning_rate * max_value` must be below 1: an explicit step cannot "
        "follow a stronger pull, and the weights would diverge. Received: "
        f"learning_rate={learning_rate}{exceeding}, max_value="
        f"{owner.max_value} (of {owner.name}). Use max_value="
        f"{0.5 / largest:.3g} or a smaller learning rate."
    )
