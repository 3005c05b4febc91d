"""Learn first, then train on everything: fresh weights, learned strengths."""

from typing import Any

import keras

from keras_hposgld.callbacks import LearnHyperparameters
from keras_hposgld.hyperparameters.copying import copy_hyperparameters
from keras_hposgld.hyperparameters.copying import unchanged_on_error
from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.training.learning_step import LearningStep
from keras_hposgld.training.refit import refit_in_place


def refit(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    hyperparameters_from: keras.Model | None = None,
    optimizer: Any = None,
    **fit_arguments: Any,
) -> keras.callbacks.History:
    """Trains fresh weights with the learned hyperparameters held fixed.

    What a search does with the best constants that it found: use all the data,
    the outer ones too. The training is the plain `fit` of the model, with a
    learned weight decay applied in each step.

    The weights of the model are replaced by the result. Trainable ones are
    drawn anew by their initializers, or start from the center that their
    strengths pull to; frozen layers, statistics and hyperparameters stay. If
    the training fails or is interrupted, the model is as it was before, its
    optimizer and hyperparameters included.

    Args:
        model: Compiled and built `keras.Model` whose hyperparameters were
            learned by `callbacks.LearnHyperparameters`, in a learner, or by
            another model. Of a `BilevelModel` its own `refit` is called.
        x: As in `keras.Model.fit`: all the data.
        y: Likewise.
        hyperparameters_from: Model of the same layers whose hyperparameters are
            copied first, see `copy_hyperparameters`. `None` (default): those
            that the model has.
        optimizer: Keras optimizer that has trained nothing yet, or its name.
            `None` (default): that of the model. In any case the model's own is
            set back to its start, so that a schedule begins anew (a learning
            rate that a callback has lowered stays), and is in its place again
            when the training is over.
        **fit_arguments: As in `keras.Model.fit`: `epochs`, `batch_size`,
            `sample_weight`, `callbacks`, ...

    Returns:
        `keras.callbacks.History` of the training.

    Raises:
        TypeError: If `model` is not a `keras.Model`, or a `MetaModel`.
        RuntimeError: If it is not compiled.
        ValueError: If it is not built or has no hyperparameters, if
            `optimizer` was used before, if the callbacks are to learn, or for
            the reasons of `copy_hyperparameters`.

    Example:

    ```python
    import keras
    import keras_hposgld as hs
    import numpy as np

    x, y = np.random.normal(size=(200, 5)), np.random.normal(size=(200, 1))
    decay = hs.regularizers.LearnableWeightDecay(0.1, granularity="input")
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(1, kernel_regularizer=decay)]
    )
    model.compile("adam", loss="mse")
    (u, v), outer = hs.data.split(x, y, 0.2)
    learning = hs.callbacks.LearnHyperparameters(outer_data=outer)
    model.fit(u, v, epochs=10, callbacks=[learning], verbose=0)

    hs.refit(model, x, y, epochs=10, verbose=0)
    ```
    """
    _check_model(model)
    with model.distribute_strategy.scope():
        owners = find_hyperparameters(model)
    if not owners:
        raise ValueError(
            "`model` must have hyperparameters that were learned. Received: "
            f"{model!r}, which has none: without them, `fit` does the same. "
            "Make it with learnable regularizers; or attach them by "
            "`keras_hposgld.BilevelModel(model, regularizer=...)` and pass "
            "`hyperparameters_from=`."
        )
    callbacks = fit_arguments.get("callbacks")
    for callback in keras.tree.flatten(callbacks):
        if isinstance(callback, LearnHyperparameters):
            raise ValueError(
                "`callbacks` must not learn where hyperparameters are held "
                f"fixed. Received: {callback!r}. Leave it out."
            )
    owned = [v for owner in owners for v in owner.fixed_variables]
    with unchanged_on_error(owned):
        if hyperparameters_from is not None:
            copy_hyperparameters(hyperparameters_from, model)
        if hasattr(model, "outer_level"):
            return model.refit(x, y, optimizer=optimizer, **fit_arguments)
        leftover = vars(model).get("train_step")
        if isinstance(leftover, LearningStep):  # of a `fit` broken off
            leftover.remove()
        return refit_in_place(model, optimizer, x, y, **fit_arguments)


def _check_model(model):
    """Checks that there is something that can be trained anew."""
    is_learner = hasattr(model, "outer_level")
    if not isinstance(model, keras.Model) or (
        is_learner and not hasattr(model, "refit")
    ):
        raise TypeError(
            "`model` must be a plain `keras.Model` or a `BilevelModel`. "
            f"Received: model={model!r} of type {type(model).__name__}."
        )
    if not model.compiled:
        raise RuntimeError(
            "`compile(...)` must be called before `refit`: it says how the "
            "weights are trained."
        )
    if not model.built:
        raise ValueError(
            "`model` must be built: its hyperparameters belong to weights. "
            f"Received: {model!r}. Give it a `keras.Input`, or call it once."
        )
