"""Plain training of fresh weights under learned hyperparameters."""

from typing import Any

import keras

from keras_hposgld.data.batches import DEFAULT_BATCH_SIZE
from keras_hposgld.data.everything import Everything
from keras_hposgld.data.everything import passes_of
from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.hyperparameters.copying import unchanged_on_error
from keras_hposgld.hyperparameters.discovery import find_hyperparameters
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
from keras_hposgld.regularizers.weight_penalty import WeightPenalty
from keras_hposgld.training.decay_of_fit import decay_held_fixed
from keras_hposgld.training.decay_of_fit import plain
from keras_hposgld.training.export import clone
from keras_hposgld.training.export import copy_weights


def check_optimizer(learner: Any, optimizer: Any = None) -> None:
    """Checks that fresh weights can be trained with what there is.

    Args:
        learner: `BilevelModel`. One that is not compiled is refused later.
        optimizer: Keras optimizer, or `None` for its sampler.

    Raises:
        ValueError: If they cannot.
    """
    sampler = getattr(learner, "sampler", None)
    if optimizer is None and getattr(sampler, "takes_step_sizes", False):
        raise ValueError(
            "A refit needs an optimizer of its own: the steps of "
            '`SGLD("auto")` are those of a chain of samples. Received: '
            "optimizer=None. Call `fit` without `refit=True`, and then "
            "`learner.refit(x, y, optimizer=keras.optimizers.Adam())`."
        )


def refit(
    learner: Any, optimizer: Any, x: Any, y: Any, **fit_arguments: Any
) -> keras.callbacks.History:
    """Trains fresh weights under learned strengths; see `BilevelModel.refit`.

    A copy is trained, since the model itself may be compiled otherwise.

    Args:
        learner: Compiled `BilevelModel`.
        optimizer: Keras optimizer, or `None` for the learner's sampler.
        x: As in `keras.Model.fit`.
        y: Likewise.
        **fit_arguments: Likewise.
    """
    check_optimizer(learner, optimizer)
    model = learner.model
    learner.find_hyperparameters()
    fresh = fresh_copy(model)
    optimizer = _unused(optimizer or _begun_anew(learner.optimizer))
    fresh.compile(optimizer=optimizer, **learner.plain_compile_arguments())
    with decay_held_fixed(fresh):
        history = fresh.fit(x, y, **fit_arguments)
    with unchanged_on_error(model.variables):  # all of them, or none
        copy_weights(fresh, model)
    return history


def refit_after(
    learner: Any,
    learning: keras.callbacks.History,
    everything: Everything,
    *,
    epochs: int,
    steps_per_epoch: int | None,
    batch_size: int | None,
    initial_epoch: int = 0,
    **fit_arguments: Any,
) -> keras.callbacks.History:
    """The same at the end of a `fit` that has learned.

    Args:
        learner: `BilevelModel`.
        learning: The `History` of the learning.
        everything: `Everything`.
        epochs: Integer, those of the `fit`. If it ended earlier, as many are
            trained as it came to.
        steps_per_epoch: Integer or `None`: the batches of an epoch of that
            `fit`. As many are trained, rounded up to whole passes.
        batch_size: Integer or `None`.
        initial_epoch: Not used: fresh weights begin at the first epoch.
        **fit_arguments: As in `keras.Model.fit`.
    """
    del initial_epoch
    if learning.epoch:
        epochs = learning.epoch[-1] + 1
    x, y, sample_weight = everything.joined()
    if steps_per_epoch is not None:
        epochs = passes_of(
            epochs * steps_per_epoch,
            len(keras.tree.flatten(x)[0]),
            batch_size or DEFAULT_BATCH_SIZE,
        )
    return learner.refit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=batch_size,
        epochs=epochs,
        **fit_arguments,
    )


def refit_in_place(
    model: keras.Model, optimizer: Any, x: Any, y: Any, **fit_arguments: Any
) -> keras.callbacks.History:
    """The same in the `fit` of a plain model; see `keras_hposgld.refit`.

    Args:
        model: Compiled and built `keras.Model`.
        optimizer: Keras optimizer, or `None` for its own, begun anew.
        x: As in `keras.Model.fit`.
        y: Likewise.
        **fit_arguments: Likewise.
    """
    own = model.optimizer
    with model.distribute_strategy.scope():
        fresh = fresh_copy(model)
        if not own.built:
            own.build(model.trainable_variables)
        begun = _begun_anew(own)
        begun.build(model.trainable_variables)
        if optimizer is None or optimizer is own:
            optimizer = own
        else:
            optimizer = _scaling_as(own, _unused(optimizer))
    with unchanged_on_error([*model.variables, *own.variables]):
        copy_weights(fresh, model)
        for variable, start in zip(own.variables, begun.variables, strict=True):
            variable.assign(start)
        del fresh, begun
        model.optimizer = optimizer
        model.train_function = None  # which has the step before
        try:
            with decay_held_fixed(model):
                return model.fit(x, y, **fit_arguments)
        finally:
            model.optimizer = own
            model.train_function = None


def fresh_copy(model: keras.Model) -> keras.Model:
    """A copy of a model with trainable weights as at the start.

    They are drawn anew, or are the centers that strengths pull them to. Frozen
    weights, statistics and hyperparameters are those of the model.

    Args:
        model: Built `keras.Model`.
    """
    find_hyperparameters(model)  # which have places then, in the copy too
    fresh = clone(model)
    hand_over(model, fresh)
    copy_weights(model, fresh, trainable=False)
    return fresh


def hand_over(model: keras.Model, fresh: keras.Model) -> None:
    """Gives a fresh model copies of the hyperparameters of another.

    Args:
        model: `keras.Model`, with learned regularizers or layers.
        fresh: `keras.Model` of the same layers.
    """
    places = weight_addresses(model)
    penalties = {
        places[id(weight)]: weight.regularizer
        for weight in model.weights
        if isinstance(weight.regularizer, WeightPenalty)
    }
    learned = {
        places[id(variable)]: variable
        for owner in find_hyperparameters(model)
        if not isinstance(owner, WeightHyperparameter)
        for variable in owner.fixed_variables
        if id(variable) in places  # else it is of a loss
    }
    find_hyperparameters(fresh)
    places = weight_addresses(fresh)
    for weight in fresh.weights:
        if places[id(weight)] in learned:
            weight.assign(learned[places[id(weight)]])
    for weight in fresh.trainable_variables:
        penalty = penalties.get(places[id(weight)])
        if penalty is None:
            continue
        copy = weight.regularizer
        if not isinstance(copy, WeightPenalty):  # attached from outside
            owner = type(penalty.owner).from_config(penalty.owner.get_config())
            copy = owner.attach(weight)
        # What the evidence draws beside strengths and center comes last, and
        # is of no use here.
        for old, new in zip(penalty.variables, copy.variables, strict=False):
            new.assign(old)
        if penalty.center is not None:  # where training starts again
            weight.assign(penalty.center)


def _begun_anew(optimizer: keras.optimizers.Optimizer) -> Any:
    """An optimizer of the same config that has taken no step."""
    return type(optimizer).from_config(optimizer.get_config())


def _unused(optimizer: Any) -> keras.optimizers.Optimizer:
    """The optimizer that is meant.

    Raises:
        ValueError: If it has variables for other weights.
    """
    optimizer = keras.optimizers.get(optimizer)
    if optimizer.built:
        raise ValueError(
            "`optimizer` must be one that has trained nothing yet. Received: "
            f"optimizer={optimizer!r}, which is built. Make a new one."
        )
    return optimizer


def _scaling_as(own: Any, optimizer: Any) -> Any:
    """An optimizer that scales the loss if another one does."""
    if plain(own) is own or plain(optimizer) is not optimizer:
        return optimizer
    return keras.optimizers.LossScaleOptimizer(optimizer)
