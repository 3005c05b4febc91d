"""Import paths of version 0.1.0 whose modules have moved since."""

import importlib
import sys

MOVED = {
    "adapter": "training.keras_problem",
    "derivatives": "core.derivatives",
    "estimators.loop": "core.loop",
    "export": "training.export",
    "hyperparameters.augmentation": "layers.learnable_affine",
    "hyperparameters.bounded_penalty": "regularizers.bounded_penalty",
    "hyperparameters.learnable_loss": "losses.learnable_loss",
    "hyperparameters.learnable_regularizer": (
        "regularizers.learnable_regularizer"
    ),
    "hyperparameters.losses": "losses",
    "hyperparameters.regularizers": "regularizers",
    "hyperparameters.weight_penalty": "regularizers.weight_penalty",
    "learner": "training.learner",
    "levels": "data.fit_data",
    "linear_solvers": "core.linear_solvers",
    "lists": "core.vectors",
    "memory": "training.memory_estimate",
    "meta_problem": "meta.meta_problem",
    "moments": "core.second_derivatives",
    "outer_level": "training.outer_level",
    "problem": "core.problem",
    "safeguards": "training.update_guard",
    "saved_learner": "training.state",
    "sgld": "samplers.sgld",
    "tasks": "meta.tasks",
    "weight_copies": "training.weight_copies",
}


def keep_old_paths() -> None:
    """Makes `import keras_hposgld.sgld` and its like go on working."""
    for old, new in MOVED.items():
        module = importlib.import_module(f"keras_hposgld.{new}")
        sys.modules[f"keras_hposgld.{old}"] = module
        parent, _, name = f"keras_hposgld.{old}".rpartition(".")
        if parent != "keras_hposgld":  # its public names are those of `dir`
            setattr(importlib.import_module(parent), name, module)
