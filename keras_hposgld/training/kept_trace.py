"""A traced function that serves one `fit` after the other.

TensorFlow never frees the graph of a function with gradients of its own, which
penalties and samplers have: they stay in a registry. To trace takes seconds
besides. So a function is made anew only where what it depends on has changed.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import keras


class KeptTrace:
    """Keeps a function, and what it was made for."""

    def __init__(self) -> None:
        # In functions: a module would track what it holds.
        self._parts: Callable = lambda: ([], None)

    def get(self, depends_on: list, make: Callable) -> Any:
        """The function kept, or a new one if it was made for something else.

        Args:
            depends_on: List of objects, compared by identity, and of methods
                and tuples of numbers, compared by value.
            make: Function without arguments that makes it.
        """
        made_for, function = self._parts()
        if function is None or not _are_same(made_for, depends_on):
            function = make()
            self._parts = lambda: (depends_on, function)
        return function

    def forget(self) -> None:
        """Has it made anew."""
        self._parts = lambda: ([], None)


def compiled_state(model: keras.Model) -> list:
    """What a step of a compiled model depends on, new if compiled again."""
    return [
        model.optimizer,
        *model.metrics,
        (model.steps_per_execution, model.jit_compile, model.run_eagerly),
    ]


def _are_same(left: list, right: list) -> bool:
    return len(left) == len(right) and all(
        a is b or (isinstance(a, tuple | MethodType) and a == b)
        for a, b in zip(left, right, strict=True)
    )
