"""Import paths of version 0.1.0 whose modules have moved since."""

import importlib
import sys

MOVED = {
    "derivatives": "core.derivatives",
    "estimators.loop": "core.loop",
    "linear_solvers": "core.linear_solvers",
    "lists": "core.vectors",
    "moments": "core.second_derivatives",
    "problem": "core.problem",
    "sgld": "samplers.sgld",
}


def keep_old_paths() -> None:
    """Makes `import keras_hposgld.sgld` and its like go on working."""
    for old, new in MOVED.items():
        sys.modules[f"keras_hposgld.{old}"] = importlib.import_module(
            f"keras_hposgld.{new}"
        )
