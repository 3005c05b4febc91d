"""Learned L1 and L2 regularization, for use as `kernel_regularizer`."""

import keras

from keras_hposgld.hyperparameters.learnable_regularizer import (
    LearnableRegularizer,
)

__all__ = ["LearnableL1", "LearnableL1L2", "LearnableL2"]


@keras.saving.register_keras_serializable(package="keras_hposgld")
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


@keras.saving.register_keras_serializable(package="keras_hposgld")
class LearnableL1L2(LearnableRegularizer):
    """Both penalties at once, each with learned strengths of its own.

    Arguments: those of `LearnableRegularizer`; both penalties start at
    `initial_value`.

    Reference:
        Kim and Hospedales, AAAI 2025, equation 1.

    Example:

    ```python
    import keras_hposgld as hs

    regularizer = hs.regularizers.LearnableL1L2(1e-4, granularity="tensor")
    ```
    """

    powers = ("l1", "l2")
