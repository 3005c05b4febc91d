"""Predictions averaged over learned transformations."""

from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.core.checks import check_count
from keras_hposgld.hyperparameters.addresses import all_layers
from keras_hposgld.layers.learnable_affine import LearnableAffine


def average_predictions(
    model: keras.Model, images: Any, num_samples: int = 8
) -> tf.Tensor:
    """The mean of a model's predictions over learned transformations.

    Args:
        model: `keras.Model` with `LearnableAffine` layers. All else is in
            inference mode.
        images: Its inputs, one batch.
        num_samples: Integer `>= 1`: transformations of each image. Defaults to
            `8`.

    Returns:
        Tensor shaped like the predictions. Average probabilities, not logits.

    Raises:
        ValueError: If the model has no such layer, or for `num_samples`
            below 1.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            hs.layers.LearnableAffine(rotation=10.0),
            keras.layers.Flatten(),
            keras.layers.Dense(3, "softmax"),
        ]
    )
    print(hs.layers.average_predictions(model, np.ones((2, 8, 8, 1)), 4))
    ```
    """
    num_samples = check_count("num_samples", num_samples, 1)
    layers = [x for x in all_layers(model) if isinstance(x, LearnableAffine)]
    if not layers:
        raise ValueError(
            "`average_predictions` needs a model with a `LearnableAffine` "
            f"layer. Received: {model!r} with 0 such layers."
        )
    for layer in layers:
        layer.transforms_in_inference = True
    try:
        samples = [model(images, training=False) for _ in range(num_samples)]
    finally:
        for layer in layers:
            layer.transforms_in_inference = False
    return tf.add_n(samples) / num_samples
