"""Which variables the optimizers of a learner were built for."""

from typing import Any

import keras


class BuiltFor:
    """Builds optimizers, and sees that their variables stay the same.

    Keras builds an optimizer once. A learner may meet other variables later:
    after layers were frozen or freed, or with another model.
    """

    def __init__(self) -> None:
        self._seen: dict[str, tuple] = {}

    def build(
        self, name: str, optimizer: keras.optimizers.Optimizer, variables: Any
    ) -> None:
        """Builds an optimizer, if it is not built.

        Args:
            name: What the user calls it.
            optimizer: Keras optimizer.
            variables: List of variables, those of now.

        Raises:
            ValueError: If it was built for others.
        """
        if not optimizer.built:
            optimizer.build(variables)
        now = id(optimizer), [id(variable) for variable in variables]
        before = self._seen.setdefault(name, now)
        if before[0] == now[0] and before[1] != now[1]:
            raise ValueError(
                f"`{name}` was built for other variables than there are now: "
                "layers were frozen or freed, or regularized, since. Received: "
                f"{len(now[1])} variables, where it has {len(before[1])}. Call "
                f"`compile(...)` again with a new `{name}`, as in Keras."
            )
        self._seen[name] = now
