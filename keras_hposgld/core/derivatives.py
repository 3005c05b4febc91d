"""First and second derivatives of the two objectives.

The one home of gradient tapes. All functions take and return flat lists of
tensors; a derivative is dense (a gather's sparse gradient is expanded) and has
the dtype of what it is taken with respect to.

Two conventions keep a step of the chain at two gradient passes:

* a second derivative is never formed, only multiplied by a vector from the
  left: `vector . d2 L / d params d hyperparameters`;
* the tape around an inner gradient watches only what will be asked of it, so
  that with learned regularizers it records nothing but the regularization.
"""

from collections.abc import Callable
from collections.abc import Iterable
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_hposgld.core.missing_derivatives import forward_explained
from keras_hposgld.core.missing_derivatives import missing_explained
from keras_hposgld.core.second_derivatives import differentiable_twice
from keras_hposgld.core.vectors import norm
from keras_hposgld.core.vectors import plus_scaled


class LinearizedGradient(NamedTuple):
    """The gradient of an objective at one point, ready to be differentiated.

    Attributes:
        value: Scalar tensor, the objective.
        carry: What the objective handed on beside its value.
        gradient: List of tensors shaped like the params.
        pullback: Function from a list of tensors shaped like the params to
            `vector . d gradient / d source`, a list with one tensor (or
            `None`, where the gradient does not depend on it) a source.
            It raises `MissingSecondDerivativeError` where TensorFlow has no
            second derivative.
    """

    value: tf.Tensor
    carry: Any
    gradient: list
    pullback: Callable


def linearize_gradient(
    objective: Callable,
    params: list,
    sources: list,
    transform: Callable = lambda gradient: gradient,
    loss_scale: float = 1.0,
) -> LinearizedGradient:
    """Differentiates an objective so that its gradient can be again.

    Args:
        objective: Function `(params)` to `(scalar, carry)`.
        params: List of tensors: where and with respect to what the gradient
            is taken.
        sources: List of tensors which the pullback differentiates the
            gradient by: hyperparameters that `objective` closes over, some
            of the params, or both.
        transform: Function applied to the gradient before it is used, such
            as clipping; the pullback goes through it.
        loss_scale: What the objective is multiplied by on the way back, lest
            small float16 numbers become zero; the results are divided by it.
    """
    with tf.GradientTape(
        persistent=True, watch_accessed_variables=False
    ) as second_tape:
        second_tape.watch(sources)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(params)
            with differentiable_twice():
                value, carry = objective(params)
        gradient = tape.gradient(
            value,
            params,
            output_gradients=_seed(value, loss_scale),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        gradient = transform(_times(1.0 / loss_scale, _dense(gradient)))

    def pullback(vector: list) -> list:
        if len(vector) != len(gradient):  # would crash in TensorFlow
            raise ValueError(
                "`vector` must have one entry for each of the params. "
                f"Received: {len(vector)} entries and {len(gradient)} params. "
                "Where the trainable weights have changed, compile again."
            )
        with missing_explained():
            products = second_tape.gradient(
                gradient, sources, output_gradients=_times(loss_scale, vector)
            )
        return _times(1.0 / loss_scale, _dense(products))

    return LinearizedGradient(value, carry, gradient, pullback)


def value_and_gradients(
    objective: Callable,
    hyperparameters: list,
    params: list,
    loss_scale: float = 1.0,
) -> tuple:
    """Evaluates an objective with its derivatives by both arguments.

    Args:
        objective: Function `(params)` to a scalar that closes over
            `hyperparameters`.
        hyperparameters: List of tensors.
        params: List of tensors.
        loss_scale: As in `linearize_gradient`.

    Returns:
        The scalar; the derivatives by the hyperparameters, `None` where there
        is no dependence; the derivatives by the params, zero where there is
        none.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(hyperparameters)
        tape.watch(params)
        value = objective(params)
    by_hyperparameters, by_params = tape.gradient(
        value,
        [list(hyperparameters), list(params)],
        output_gradients=_seed(value, loss_scale),
    )
    by_params = [
        tf.zeros_like(param) if gradient is None else gradient
        for param, gradient in zip(params, by_params, strict=True)
    ]
    return (
        value,
        _times(1.0 / loss_scale, _dense(by_hyperparameters)),
        _times(1.0 / loss_scale, _dense(by_params)),
    )


def vector_jacobian_product(
    function: Callable, inputs: list, vector: list
) -> list:
    """`vector . d function / d inputs`, `None` where there is no dependence.

    Args:
        function: Function from a list of tensors to a list of tensors.
        inputs: List of tensors.
        vector: List of tensors shaped like the output of `function`.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    return _dense(tape.gradient(outputs, inputs, output_gradients=vector))


def directional_derivative(
    function: Callable, inputs: list, direction: list
) -> list:
    """`d function / d inputs . direction`, zero where there is no dependence.

    Args:
        function: Function from a list of tensors to a list of tensors.
        inputs: List of tensors.
        direction: List of tensors shaped like `inputs`.

    Raises:
        MissingSecondDerivativeError: If `function` takes a gradient that
            TensorFlow has no derivative of, or none in forward mode.
    """
    with missing_explained(), forward_explained():
        with tf.autodiff.ForwardAccumulator(inputs, direction) as accumulator:
            outputs = function(inputs)
    return _dense(
        accumulator.jvp(output, tf.UnconnectedGradients.ZERO)
        for output in outputs
    )


def difference_along(
    function: Callable, inputs: list, outputs: list, direction: list
) -> list:
    """`directional_derivative` by one more evaluation of the function.

    The two points lie `(1 + norm of the inputs)` times the cube root of the
    machine epsilon apart. Rounding alone would ask for less, but a function
    with kinks, such as the gradient of a network with ReLUs, jumps on the way,
    and a jump weighs the more the shorter the way is.

    Args:
        function: Function from a list of tensors to a list of tensors.
        inputs: List of tensors.
        outputs: `function(inputs)`, which is known by now.
        direction: List of tensors shaped like `inputs`. Zero gives zero.
    """
    dtype = inputs[0].dtype
    epsilon = np.finfo(dtype.as_numpy_dtype).eps
    distance = (1.0 + norm(inputs)) * epsilon ** (1 / 3)
    length = norm(direction)
    step = tf.math.divide_no_nan(distance, length)
    moved = function(plus_scaled(inputs, step, direction))
    change = plus_scaled(moved, -1.0, outputs)
    return [tf.cast(length / distance, c.dtype) * c for c in change]


def _seed(value: tf.Tensor, loss_scale: float) -> tf.Tensor | None:
    if loss_scale == 1.0:
        return None
    return tf.fill(value.shape, tf.constant(loss_scale, value.dtype))


def _times(factor: float, gradients: list) -> list:
    if factor == 1.0:
        return gradients
    return [
        None if gradient is None else factor * gradient
        for gradient in gradients
    ]


def _dense(gradients: Iterable) -> list:
    return [
        None if gradient is None else tf.convert_to_tensor(gradient)
        for gradient in gradients
    ]
