"""The error where TensorFlow has no second derivative, and what to do then.

TensorFlow raises a `LookupError` with the name of a kernel. In CTC it gives
NaN in eager mode, and fails in a graph with a text of hundreds of lines; there
the derivative is refused before it is made.
"""

import contextlib
import re
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any
from typing import NoReturn

import tensorflow as tf

_tensorflow_ctc_loss = tf.nn.ctc_loss

# What TensorFlow says where it forgets that a loop holds lists of tensors, and
# where an operation has a shape for an attribute.
FORWARD_FAILURES = ("<dtype: 'variant'> is not compatible", "TraceType for dim")


class MissingSecondDerivativeError(ValueError, LookupError):
    """An objective lacks a second derivative which an estimator needs."""

    # With this constructor AutoGraph keeps the class of an error that it
    # writes anew.
    __init__ = Exception.__init__


@contextlib.contextmanager
def missing_explained() -> Iterator[None]:
    """Says what to do where TensorFlow lacks a derivative.

    Raises:
        MissingSecondDerivativeError: In place of TensorFlow's `LookupError`.
    """
    try:
        yield
    except LookupError as error:
        if type(error) is not LookupError:  # an index, a key, or our own
            raise
        raise missing(*_operation_of(str(error))) from error


@contextlib.contextmanager
def forward_explained() -> Iterator[None]:
    """Says what to do where TensorFlow's forward mode fails.

    Raises:
        MissingSecondDerivativeError: In place of TensorFlow's `TypeError`.
    """
    try:
        yield
    except TypeError as error:
        if not any(text in str(error) for text in FORWARD_FAILURES):
            raise
        raise MissingSecondDerivativeError(
            "The estimator differentiates forward, and TensorFlow's forward "
            "mode fails for one of the objective's operations. Known are "
            "loops in a graph, and so recurrent layers, and `tf.ensure_shape`. "
            f"Received: the error {str(error)[:200]!r}. Use `RMD`, which "
            "differentiates the same steps backward."
        ) from error


def missing(operation: str, place: str = "") -> MissingSecondDerivativeError:
    """The error for an operation.

    Args:
        operation: String, what TensorFlow or the user calls it.
        place: String, where it stands. Defaults to `""`, which is unknown.
    """
    where = f" in {place}" if place else ""
    return MissingSecondDerivativeError(
        "The estimator needs second derivatives of the objective, and "
        "TensorFlow has none of one of its operations. "
        f"Received: operation={operation!r}{where}. Use an estimator that "
        "takes no product with the Hessian: `HPOSGLD` with learned "
        'regularizers, `AdjointSGLD(hessian_product="difference")`, or '
        "`FirstOrder` for meta-learned initial weights."
    )


def ctc_loss(labels: Any, logits: tf.Tensor, *args: Any, **kwargs: Any) -> Any:
    """As `tf.nn.ctc_loss`; its second derivative is refused."""
    logits = _once_differentiable(logits, "tf.nn.ctc_loss")
    return _tensorflow_ctc_loss(labels, logits, *args, **kwargs)


def _once_differentiable(x: tf.Tensor, operation: str) -> tf.Tensor:
    """`x`; who differentiates a gradient by it gets an error."""

    @tf.custom_gradient
    def identity(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        @tf.custom_gradient
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            def refuse(_: tf.Tensor) -> NoReturn:
                raise missing(operation)

            return tf.identity(upstream), refuse

        return tf.identity(x), gradient

    return identity(x)


def _operation_of(text: str) -> tuple[str, str]:
    """The operation that an error of TensorFlow's names, and its place."""
    found = re.search(r"no entry for: (\w+)|\(op type: (\w+)\)", text)
    if not found:
        return text, ""
    operation = found[1] or found[2]
    layer = re.search(r"when calling (\w+)\.call\(\)", text)
    if layer:
        return operation, f"the layer {layer[1]}"
    return operation, _names_in_graph(operation)


def _names_in_graph(operation: str) -> str:
    """Names of the operations of a kind, in the graph that is traced."""
    graph, names = tf.compat.v1.get_default_graph(), []
    while graph is not None:
        names += [
            op.name for op in graph.get_operations() if op.type == operation
        ]
        graph = getattr(graph, "outer_graph", None)
    return ", ".join(sorted(names)[:3])
