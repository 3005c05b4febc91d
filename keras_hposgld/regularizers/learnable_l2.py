"""Learned L2 regularization."""

from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.regularizers.learnable_regularizer import (
    LearnableRegularizer,
)


@register("l2")
class LearnableL2(LearnableRegularizer):
    """Learned L2 regularization: `sum(strength * (weight - center) ** 2)`.

    The strengths are learned by `BilevelModel`; in a plain `model.fit` they
    act as constants. Arguments: those of `LearnableRegularizer`.

    Reference:
        Kim and Hospedales, AAAI 2025, equation 1.

    Example:

    ```python
    import keras
    import keras_hposgld as hs

    layer = keras.layers.Dense(
        8,
        kernel_regularizer=hs.regularizers.LearnableL2(
            1e-2, granularity="input", max_value=5.0
        ),
    )
    layer.build((None, 4))
    print(layer.losses)  # like keras.regularizers.L2(1e-2), so far
    ```
    """

    powers = ("l2",)
    is_quadratic = True
