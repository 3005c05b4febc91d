"""The kinds of hyperparameters, by alias."""

from collections.abc import Callable
from typing import Any

from keras_hposgld.core.registry import Registry
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter

REGISTRY = Registry("hyperparameter")


def register(alias: str) -> Callable[[type], type]:
    """Makes a kind of hyperparameter known, also to Keras's files.

    Args:
        alias: String.

    Returns:
        A decorator of a class that inherits from `Hyperparameter` and from a
        Keras layer or loss.

    Raises:
        TypeError: If the class does not inherit from `Hyperparameter`.
        ValueError: If the alias belongs to another class.

    Example:

    ```python
    import keras_hposgld as hs


    @hs.hyperparameters.register("weak_l2")
    class WeakL2(hs.regularizers.LearnableL2):
        # L2 that starts, and stays, weak.
        def __init__(self, initial_value=1e-6, max_value=1e-3, **arguments):
            super().__init__(initial_value, max_value=max_value, **arguments)
    ```
    """

    def decorate(cls: Any) -> type:
        if not issubclass(cls, Hyperparameter):
            raise TypeError(
                "A kind of hyperparameter must inherit from "
                f"`keras_hposgld.hyperparameters.Hyperparameter`. Received: "
                f"{cls!r}."
            )
        return REGISTRY.register(alias)(cls)

    return decorate
