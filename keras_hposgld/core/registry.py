"""Aliases of classes, such as `"hpo_sgld"`: one registry for each axis."""

from collections.abc import Callable

import keras


class Registry:
    """Names the members of one axis.

    Args:
        what: String, what a member is called in messages.
    """

    def __init__(self, what: str):
        self.what = what
        self._classes: dict[str, type] = {}

    @property
    def aliases(self) -> list[str]:
        """The known aliases, sorted."""
        return sorted(self._classes)

    def register(self, alias: str) -> Callable[[type], type]:
        """Makes a class known by an alias and to Keras's serialization.

        Args:
            alias: String.

        Raises:
            ValueError: If the alias belongs to another class.
        """

        def decorate(cls: type) -> type:
            known = self._classes.get(alias, cls)
            if known.__qualname__ != cls.__qualname__:
                raise ValueError(
                    f"`alias` must be one that is not in use. Received: "
                    f"alias={alias!r}, which is {known.__name__}."
                )
            self._classes[alias] = cls
            package = "keras_hposgld"
            if not cls.__module__.startswith("keras_hposgld."):
                package = cls.__module__
            return keras.saving.register_keras_serializable(package)(cls)

        return decorate

    def find(self, alias: str) -> type | None:
        """The class of an alias; `None` if there is none."""
        return self._classes.get(alias)

    def unknown(self, alias: str) -> ValueError:
        """The error for an alias that is not known."""
        return ValueError(
            f"Unknown {self.what}. Received: {alias!r}. "
            f"Known aliases: {self.aliases}."
        )
