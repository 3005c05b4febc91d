"""A step of a Keras optimizer on tensors, computed by Keras itself.

`update_step` reads the slots of its optimizer and assigns to them. Here it
finds cells that hold tensors, so that the step is a pure function, inside of
any loop and under any compiler.
"""

from typing import Any

import keras
import tensorflow as tf


class StandIn:
    """What Keras's `update_step` gets as its optimizer.

    Args:
        optimizer: `keras.optimizers.Optimizer`, for its constants.
        state: Dictionary from the names of its slots to lists of tensors.
        position: Integer: which weight the step is of.
        iterations: Integer tensor, the number of steps before.
    """

    def __init__(
        self,
        optimizer: keras.optimizers.Optimizer,
        state: dict[str, list],
        position: int,
        iterations: tf.Tensor,
    ):
        self._optimizer = optimizer
        self.iterations = iterations
        for name, slots in state.items():
            if name == "_u_product":
                (self._u_product,) = slots
            else:
                setattr(self, name, [_Cell(slots[position])])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)  # constants such as beta_1

    def step(
        self, gradient: tf.Tensor, param: tf.Tensor, rate: tf.Tensor
    ) -> tf.Tensor:
        """The weight after the step; the slots are moved too."""
        cell = _Cell(param)
        type(self._optimizer).update_step(self, gradient, cell, rate)
        return cell.tensor

    def slot(self, name: str) -> tf.Tensor:
        """A slot of the weight, after the step."""
        (cell,) = getattr(self, name)
        return cell.tensor

    def _get_variable_index(self, variable: Any) -> int:
        return 0

    def assign(self, cell: "_Cell", value: Any) -> None:
        cell.tensor = tf.cast(value, cell.dtype)

    def assign_add(self, cell: "_Cell", value: Any) -> None:
        cell.tensor = cell.tensor + tf.cast(value, cell.dtype)

    def assign_sub(self, cell: "_Cell", value: Any) -> None:
        cell.tensor = cell.tensor - tf.cast(value, cell.dtype)


class _Cell:
    """A tensor where Keras expects a variable."""

    def __init__(self, tensor: tf.Tensor):
        self.tensor = tensor

    @property
    def dtype(self) -> tf.DType:
        return self.tensor.dtype

    @property
    def shape(self) -> tf.TensorShape:
        return self.tensor.shape

    def __tf_tensor__(self, dtype: Any = None, name: Any = None) -> tf.Tensor:
        return self.tensor

    def __sub__(self, other: Any) -> tf.Tensor:
        return self.tensor - other
