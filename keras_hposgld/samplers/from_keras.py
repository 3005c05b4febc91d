"""Which Keras optimizers are served as samplers."""

import keras

from keras_hposgld.samplers.keras_forms import FORMS
from keras_hposgld.samplers.keras_steps import KerasSteps
from keras_hposgld.samplers.sampler import Sampler


def from_optimizer(optimizer: keras.optimizers.Optimizer) -> Sampler:
    """Makes a sampler of a Keras optimizer, whose steps a chain then takes.

    Served are SGD (with momentum and Nesterov's too), RMSprop, Adam, AdamW,
    Adamax and Nadam, with clipping, schedules, weight decay and moving
    averages of the weights. In a Keras model the optimizer's own variables
    hold the state. The chain has no noise.

    Args:
        optimizer: `keras.optimizers.Optimizer`. A sampler is returned as is.

    Returns:
        `Sampler`.

    Raises:
        ValueError: If the optimizer is of another kind, or does something that
            a chain cannot: accumulate gradients, overwrite the weights by
            their average, scale the loss.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    problem = hs.BilevelProblem(
        lambda h, w, batch: (w - 1.0) ** 2 + h * w**2,
        lambda h, w, batch: (w - 0.5) ** 2,
    )
    sampler = hs.samplers.from_optimizer(keras.optimizers.Adam(0.1))
    estimate = hs.hypergradient(
        problem, 0.1, 0.0, estimator="rmd", sampler=sampler
    )
    print(estimate.hypergradient)
    ```
    """
    return _served(
        optimizer,
        gradient_accumulation_steps="each step of a chain moves it",
        ema_overwrite_frequency="it moves the weights by no gradient",
        loss_scale_factor="a chain scales the loss by itself",
    )


def of_training(optimizer: keras.optimizers.Optimizer) -> Sampler:
    """The sampler whose steps an optimizer takes by itself, in a `fit`.

    Args:
        optimizer: `keras.optimizers.Optimizer`.

    Raises:
        ValueError: As in `from_optimizer`, but that gradients may be
            accumulated and the loss may be scaled.
    """
    return _served(
        optimizer, ema_overwrite_frequency="it moves the weights by no gradient"
    )


def _served(optimizer: keras.optimizers.Optimizer, **refused: str) -> Sampler:
    """The sampler of an optimizer, unless an argument of it is refused."""
    if isinstance(optimizer, Sampler):
        return optimizer
    if type(optimizer) not in FORMS:
        served = ", ".join(sorted(kind.__name__ for kind in FORMS))
        raise ValueError(
            "The optimizer of a chain must be of a kind whose step has a known "
            f"form. Received: optimizer={type(optimizer).__name__}. Served "
            f"are {served}, and `keras_hposgld.SGLD` and `PSGLD`. For another "
            "one write a `keras_hposgld.samplers.Sampler`."
        )
    for name, why in refused.items():
        if getattr(optimizer, name):
            raise ValueError(
                f"`{name}` must be None in the optimizer of a chain: {why}. "
                f"Received: {name}={getattr(optimizer, name)}."
            )
    return KerasSteps(optimizer)
