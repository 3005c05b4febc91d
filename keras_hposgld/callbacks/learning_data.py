"""The data that a callback reads by itself, beside those of `fit`."""

from typing import Any

import keras

from keras_hposgld.data import kinds
from keras_hposgld.data.arrays import as_arrays
from keras_hposgld.data.elements import inputs_of
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.training.outer_level import OuterLevel


def read_data(
    data: dict[str, Any],
    model: keras.Model,
    outer_level: OuterLevel,
    batch_size: int,
    seed: int,
) -> FitData:
    """Reads levels of data.

    Args:
        data: Dictionary from the name of a level, `"inner_data"` or
            `"outer_data"`, to its data; `None` for a level that is not read.
        model: `keras.Model` that they are for.
        outer_level: `OuterLevel`, whose loss may need targets.
        batch_size: Integer, for arrays and single examples.
        seed: Integer: the order of examples.
    """

    def level(name: str, given: Any) -> Any:
        has_loss = name == "outer_data" and outer_level.outer_loss is not None
        return kinds.level_data(
            name,
            *keras.utils.unpack_x_y_sample_weight(as_arrays(given)),
            default_batch_size=batch_size,
            seed=seed + (name == "outer_data"),
            inputs=inputs_of(model),
            needs_targets=model.loss is not None or has_loss,
        )

    return FitData(
        [level(name, part) for name, part in data.items() if part is not None]
    )


def build(model: keras.Model, data: FitData) -> None:
    """Builds a model as its first batch would, which comes too late."""
    if not model.variables:
        x, *_ = data.levels[-1].first_batch()
        with model.distribute_strategy.scope():
            model(x, training=False)
