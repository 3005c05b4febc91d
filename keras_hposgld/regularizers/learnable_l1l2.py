"""Learned L1 and L2 regularization."""

from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.regularizers.learnable_regularizer import (
    LearnableRegularizer,
)


@register("l1l2")
class LearnableL1L2(LearnableRegularizer):
    """Both penalties at once, each with learned strengths of its own.

    Arguments: those of `LearnableRegularizer`; both penalties start at
    `initial_value`.

    With the evidence both strengths climb it, also with `update="gibbs"`: the
    prior of both is no law to draw them from. The L1 part is a mixture of
    quadratic penalties, as in `LearnableL1`.

    Reference:
        Kim and Hospedales, AAAI 2025, equation 1.

    Example:

    ```python
    import keras_hposgld as hs

    regularizer = hs.regularizers.LearnableL1L2(1e-4, granularity="tensor")
    ```
    """

    powers = ("l1", "l2")
    is_mixture = True
