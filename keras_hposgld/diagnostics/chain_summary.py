"""What samples of chains are worth, and whether the chains agree."""

from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_hposgld.core.chain_statistics import chain_statistics


class ChainSummary(NamedTuple):
    """What `chain_summary` returns, a value a quantity.

    Attributes:
        effective_sample_size: Array: how many independent samples the samples
            of all chains are worth.
        potential_scale_reduction: Array, R-hat: near 1 where the chains tell
            the same, clearly above where they do not.
        is_mixed: Whether every R-hat is below 1.05.
    """

    effective_sample_size: np.ndarray
    potential_scale_reduction: np.ndarray
    is_mixed: bool


def chain_summary(samples: Any) -> ChainSummary:
    """Effective sample size and R-hat of chains, by TensorFlow Probability.

    Args:
        samples: Array of shape `(num_samples, num_chains, ...)`, or
            `(num_samples,)` for one chain of one quantity. Start the chains in
            different places: chains that all begin in one well agree with one
            another whether or not they ever leave it. One chain is compared
            with itself, first half against second.

    Returns:
        `ChainSummary`.

    Raises:
        ValueError: If there are fewer than 4 samples.

    Example:

    ```python
    import keras_hposgld as hs
    import numpy as np

    samples = np.random.default_rng(0).normal(size=(500, 4))
    assert hs.diagnostics.chain_summary(samples).is_mixed
    ```
    """
    samples = tf.convert_to_tensor(samples)
    if samples.shape.rank == 1:
        samples = samples[:, tf.newaxis]
    if samples.shape[0] < 4:
        raise ValueError(
            "`samples` must hold at least 4 samples. "
            f"Received: an array of shape {tuple(samples.shape)}."
        )
    sizes, reduction = chain_statistics(samples)
    return ChainSummary(
        effective_sample_size=sizes.numpy().sum(axis=0),
        potential_scale_reduction=reduction.numpy(),
        is_mixed=bool(np.all(reduction < 1.05)),
    )
