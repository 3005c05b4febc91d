"""Plain Keras models of kept samples of the weights."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_hposgld.core.checks import check_count
from keras_hposgld.hyperparameters.addresses import weight_addresses
from keras_hposgld.training.export import clone
from keras_hposgld.training.export import copy_weights
from keras_hposgld.training.export import export_model
from keras_hposgld.training.posterior_average import kinds_for


def plain_model(learner: Any, posterior: Any) -> keras.Model:
    """A plain model; see `PosteriorLearner.export`.

    Args:
        learner: `PosteriorLearner`.
        posterior: `"auto"`, `"average"`, an integer or `None`.
    """
    if isinstance(posterior, str) and posterior == "auto":
        posterior = "average" if learner.num_samples_used() else None
    if posterior is None:
        return export_model(learner.model)
    if isinstance(posterior, str) and posterior == "average":
        learner.check_samples('posterior="average"')
        return _average(learner)
    if isinstance(posterior, str):
        raise ValueError(
            '`posterior` must be "auto", "average", None or an integer. '
            f"Received: posterior={posterior!r}."
        )
    index = _checked_index(learner, posterior)
    with _at(learner, index):
        return export_model(learner.model)


def _checked_index(learner: Any, posterior: Any) -> int:
    number = learner.check_samples("posterior")
    is_negative = isinstance(posterior, int | np.integer) and posterior < 0
    try:
        index = check_count(
            "posterior",
            posterior + number if is_negative else posterior,
            0,
            number - 1,
        )
    except ValueError as error:
        raise ValueError(
            f'`posterior` must be "auto", "average", None or an integer from '
            f"{-number} to {number - 1}, the number of a sample. Received: "
            f"posterior={posterior!r}."
        ) from error
    return index


@contextlib.contextmanager
def _at(learner: Any, index: int) -> Iterator[None]:
    """Gives a model the weights of a sample for a while."""
    values = learner.posterior.reader(learner.model)(index)
    before = [np.array(variable.numpy()) for variable, _ in values]
    try:
        for variable, value in values:
            variable.assign(value)
        yield
    finally:
        for (variable, _), value in zip(values, before, strict=True):
            variable.assign(value)


def _average(learner: Any) -> keras.Model:
    """One functional model of a copy for each sample."""
    model = learner.model
    inputs = _inputs_like(model)
    plain = export_model(model)
    places = weight_addresses(model)
    read = learner.posterior.reader(model)
    outputs = []
    for index in range(learner.num_samples_used()):
        copy = clone(plain, adapted=_adapted_copy)
        copy.name = f"sample_{index}"
        copy_weights(plain, copy)
        addresses = weight_addresses(copy)
        own = {addresses[id(weight)]: weight for weight in copy.weights}
        for variable, value in read(index):
            own[places[id(variable)]].assign(value)
        outputs.append(copy(inputs))
    flat = zip(*map(keras.tree.flatten, outputs), strict=True)
    averages = [
        _average_of(kind, list(ys))
        for kind, ys in zip(kinds_for(learner, outputs[0]), flat, strict=True)
    ]
    averages = keras.tree.pack_sequence_as(outputs[0], averages)
    average = keras.Model(inputs, averages, name=model.name)
    # Else it would have the penalty of each copy.
    average.trainable = False
    return average


def _adapted_copy(layer: Any) -> keras.layers.Layer:
    """A copy of a layer that was adapted to data.

    Keras cannot load a model of which two parts share one.
    """
    copy = type(layer).from_config(layer.get_config())
    if layer.built:
        copy.build_from_config(layer.get_build_config())
    variables: dict[str, Any] = {}
    layer.save_own_variables(variables)
    copy.load_own_variables(variables)
    if hasattr(layer, "save_assets"):  # a vocabulary
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)
    return copy


def _average_of(kind: Any, ys: list) -> Any:
    dtype = ys[0].dtype
    if dtype not in ("float16", "bfloat16"):
        return kind.average_of(ys)
    ys = [keras.ops.cast(y, "float32") for y in ys]
    return keras.ops.cast(kind.average_of(ys), dtype)


def _inputs_like(model: keras.Model) -> Any:
    """New inputs for a functional model, as another one has them."""
    is_sequential = isinstance(model, keras.Sequential)
    if not (is_sequential or hasattr(model, "operations")):
        raise ValueError(
            '`posterior="average"` needs a Sequential or Functional model, '
            f"whose inputs are known. Received: model={model!r} of type "
            f"{type(model).__name__}. Export a single sample, "
            "`posterior=-1`, or the weights as they are, `posterior=None`."
        )
    inputs = model.inputs[0] if is_sequential else model.input
    return keras.tree.map_structure(
        lambda x: keras.Input(
            x.shape[1:], x.shape[0], dtype=x.dtype, name=x.name
        ),
        inputs,
    )
