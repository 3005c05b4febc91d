"""The generalized Gauss-Newton matrix of an objective, times a vector.

An objective is a loss of what a model predicts, plus a regularization. Its
Hessian has a part that bends with the model and may be negative. Without it,

    G = J' (d2 loss / d predictions2) J + d2 regularization / d params2

with J the Jacobian of the predictions, which is positive semi-definite for the
usual losses. `mark_predictions` says, inside of the objective, where the model
ends and the loss begins.

Reference:
    Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order
    Gradient Descent", Neural Computation 2002.
"""

import contextlib
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from keras_hposgld.core.missing_derivatives import missing_explained
from keras_hposgld.core.second_derivatives import differentiable_twice

_cutting = threading.local()


def mark_predictions(predictions: Any) -> Any:
    """Says what the model predicts, inside of an inner objective.

    `AdjointSGLD(curvature="gauss_newton")` needs it: the curvature of the loss
    is taken behind this point, and that of the model before it is left out.
    Everywhere else it returns its argument and does nothing.

    Args:
        predictions: Structure of tensors.

    Returns:
        The same structure, to be used in place of the argument.

    Example:

    ```python
    import keras_hposgld as hs
    import tensorflow as tf

    def inner(strength, weights, batch):
        x, y = batch
        predictions = hs.mark_predictions(tf.tanh(tf.linalg.matvec(x, weights)))
        penalty = strength * tf.reduce_sum(weights**2)
        return tf.reduce_mean((predictions - y) ** 2) + penalty

    def outer(strength, weights, batch):
        x, y = batch
        return tf.reduce_mean((tf.tanh(tf.linalg.matvec(x, weights)) - y) ** 2)

    x, y = tf.random.normal((20, 8, 3)), tf.random.normal((20, 8))
    estimate = hs.hypergradient(
        hs.BilevelProblem(inner, outer),
        hyperparameters=0.1,
        params=tf.zeros([3]),
        estimator=hs.estimators.AdjointSGLD(curvature="gauss_newton"),
        sampler=hs.SGLD(0.1),
        inner_batches=(x, y),
        outer_batches=(x, y),
    )
    print(estimate.hypergradient)
    ```
    """
    cut = getattr(_cutting, "function", None)
    if cut is None:
        return predictions
    return tf.nest.map_structure(cut, predictions)


@contextlib.contextmanager
def _cut_by(function: Callable) -> Iterator[None]:
    before = getattr(_cutting, "function", None)
    _cutting.function = function
    try:
        yield
    finally:
        _cutting.function = before


def gauss_newton_product(
    objective: Callable, params: list, vector: list, loss_scale: float = 1.0
) -> list:
    """G times a vector: a Jacobian-vector and a vector-Jacobian product.

    Args:
        objective: Function `(params)` to a scalar that marks its predictions.
        params: List of tensors.
        vector: List of tensors shaped like `params`.
        loss_scale: What the objective is multiplied by on the way back, so
            that small float16 numbers do not become zero.

    Raises:
        ValueError: If the objective marks nothing.
    """
    predictions: list = []
    leaves: list = []
    with tf.GradientTape(
        persistent=True, watch_accessed_variables=False
    ) as second_tape:

        def cut(prediction: tf.Tensor) -> tf.Tensor:
            # The loss sees a leaf, so that its derivatives end there.
            leaf = tf.stop_gradient(prediction)
            second_tape.watch(leaf)
            tape.watch(leaf)
            predictions.append(prediction)
            leaves.append(leaf)
            return leaf

        with tf.GradientTape(
            persistent=True, watch_accessed_variables=False
        ) as tape:
            tape.watch(params)
            second_tape.watch(params)
            with _cut_by(cut), differentiable_twice():
                value = loss_scale * objective(params)
        if not predictions:
            raise ValueError(
                '`curvature="gauss_newton"` needs an inner objective that says '
                "what the model predicts. Received: one without a call of "
                "`keras_hposgld.mark_predictions`. Call it on the predictions, "
                'or use `curvature="hessian"`.'
            )
        with second_tape.stop_recording(), missing_explained():
            moved = _jacobian_product(tape, predictions, params, vector)
        zero = tf.UnconnectedGradients.ZERO
        gradient = tape.gradient(
            value, [leaves, params], unconnected_gradients=zero
        )
    with missing_explained():
        by_leaves, by_params = second_tape.gradient(
            gradient,
            [leaves, params],
            output_gradients=[moved, vector],
            unconnected_gradients=zero,
        )
    through_model = tape.gradient(
        predictions,
        params,
        output_gradients=by_leaves,
        unconnected_gradients=zero,
    )
    return [
        (tf.convert_to_tensor(a) + tf.convert_to_tensor(b)) / loss_scale
        for a, b in zip(by_params, through_model, strict=True)
    ]


def _jacobian_product(
    tape: tf.GradientTape, outputs: list, inputs: list, vector: list
) -> list:
    # The transposed product is linear in what comes from above; its derivative
    # by that is the product. In a graph nothing else of it is computed.
    above = [tf.ones_like(output) for output in outputs]
    with tf.GradientTape(watch_accessed_variables=False) as linear:
        linear.watch(above)
        transposed = tape.gradient(
            outputs,
            inputs,
            output_gradients=above,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    return linear.gradient(
        transposed,
        above,
        output_gradients=vector,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
