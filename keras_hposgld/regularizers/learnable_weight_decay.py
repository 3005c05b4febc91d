"""Learned weight decay, decoupled from the gradient."""

from typing import Any

from keras_hposgld.hyperparameters.registry import register
from keras_hposgld.regularizers.learnable_regularizer import (
    LearnableRegularizer,
)


@register("weight_decay")
class LearnableWeightDecay(LearnableRegularizer):
    """Learned weight decay, decoupled from the gradient as in AdamW.

    Each step takes `learning_rate * strength * (weight - center)` off the
    weight. The loss does not change, and an optimizer such as Adam does not
    rescale the pull, as it would that of `LearnableL2`. A strength held at `c`
    is Keras's `AdamW(weight_decay=c)`.

    The callback `LearnHyperparameters` and `BilevelModel` apply it and learn
    it. `refit` applies it. A plain `model.fit` does neither.

    Args:
        initial_value: Float in `(0, max_value)`, every strength at the start.
            Defaults to `0.1`.
        granularity: As in `LearnableRegularizer`. Defaults to `"auto"`.
        max_value: Float, the bound of the strengths: `learning_rate *
            max_value` must be below 1. Defaults to `50.0`.
        **regularizer_arguments: The other arguments of `LearnableRegularizer`.

    Reference:
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR
        2019.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    learner = hs.BilevelModel(
        model, regularizer=hs.regularizers.LearnableWeightDecay(0.1)
    )
    learner.compile(optimizer="adam", loss="mse")
    x, y = np.random.normal(size=(64, 5)), np.random.normal(size=(64, 1))
    learner.fit(
        x[:40], y[:40], outer_data=(x[40:], y[40:]), batch_size=8, verbose=0
    )
    print(learner.hyperparameter_values())
    ```
    """

    powers = ("decay",)

    def __init__(
        self,
        initial_value: float = 0.1,
        granularity: str = "auto",
        max_value: float = 50.0,
        **regularizer_arguments: Any,
    ):
        super().__init__(
            initial_value, granularity, max_value, **regularizer_arguments
        )

    def check_learning_rate(
        self, learning_rate: float, scale: float | None = 1.0
    ) -> None:
        """Refuses a step that takes more than all of a weight.

        No sampler rescales a decay.
        """
        super().check_learning_rate(learning_rate)
