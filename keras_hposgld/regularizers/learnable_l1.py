"""Learned L1 regularization."""

import keras

from keras_hposgld.regularizers.learnable_regularizer import (
    LearnableRegularizer,
)


@keras.saving.register_keras_serializable(package="keras_hposgld")
class LearnableL1(LearnableRegularizer):
    """Learned L1 regularization: `sum(strength * abs(weight - center))`.

    Arguments: those of `LearnableRegularizer`.

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
