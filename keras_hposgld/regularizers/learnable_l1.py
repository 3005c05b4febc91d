"""Learned L1 regularization."""

from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.regularizers.learnable_regularizer import (
    LearnableRegularizer,
)


@register("l1")
class LearnableL1(LearnableRegularizer):
    """Learned L1 regularization: `sum(strength * abs(weight - center))`.

    Arguments: those of `LearnableRegularizer`.

    With the evidence and a sampler that solves quadratic penalties, such as
    `SGLD("auto")`, the penalty is a mixture of those while `fit` runs: the step
    can follow any strength, and the default of `max_value` is `1e6`.

    Reference:
        Kim and Hospedales, AAAI 2025, equation 1.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    layer = keras.layers.Dense(
        8, kernel_regularizer=hs.regularizers.LearnableL1(center="initial")
    )
    layer.build((None, 4))
    assert float(layer.losses[0]) == 0.0  # nothing has moved yet
    ```
    """

    powers = ("l1",)
    is_mixture = True
