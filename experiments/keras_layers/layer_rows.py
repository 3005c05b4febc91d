"""A row of the table, and what is right in it."""

import dataclasses

import layer_models

# Largest relative differences of a row that is right. The two derivatives are
# compared with differences: these lose digits by their distance and by the
# precision of what they subtract.
LIMITS = {
    "float64": {"weights": 1e-12, "derivative": 1e-6, "export": 1e-12},
    "float32": {"weights": 1e-5, "derivative": 5e-2, "export": 1e-5},
}


@dataclasses.dataclass
class Row:
    """What was measured of a layer.

    Attributes:
        name: String.
        dtype: String, what its model computes in.
        weights: Float, the largest difference from plain training over the
            largest weight, or `None` where the layer is refused.
        one_step: Float, the relative error of `HPOSGLD(0, 1)`, or `None`.
        three_steps: Float, that of `RMD(num_steps=3)`, or `None`.
        resumed: Whether a learner from a file goes on bit for bit.
        export: Float, the relative difference of the predictions.
        refused: String, why there are no numbers, or are fewer. Or empty.
        seconds: Float.
    """

    name: str
    dtype: str
    weights: float | None = None
    one_step: float | None = None
    three_steps: float | None = None
    resumed: bool | None = None
    export: float | None = None
    refused: str = ""
    seconds: float = 0.0

    def faults(self) -> list[str]:
        """What is off, in words; the empty list where nothing is."""
        limits = LIMITS[self.dtype]
        found = [
            f"{name}={value} above {limits[limit]}"
            for name, limit in (
                ("weights", "weights"),
                ("one_step", "derivative"),
                ("three_steps", "derivative"),
                ("export", "export"),
            )
            if (value := getattr(self, name)) is not None
            and not value <= limits[limit]
        ]
        if self.resumed is False:
            found.append("not resumed bit for bit")
        expected = layer_models.REFUSED.get(self.name)
        if self.refused and (not expected or expected not in self.refused):
            found.append(f"refused: {first_sentence(self.refused)}")
        elif expected and not self.refused:
            found.append("not refused, although the table says so")
        return found


def first_sentence(message: str) -> str:
    """The first sentence of an error, without what follows a colon."""
    return message.split(". ")[0].split(": ")[0]
