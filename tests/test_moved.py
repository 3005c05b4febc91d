"""Import paths of version 0.1.0."""

import importlib

import pytest

import keras_hposgld as hs
from keras_hposgld.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_old_import_paths_lead_to_the_moved_modules(old):
    module = importlib.import_module(f"keras_hposgld.{old}")
    assert module.__name__ == f"keras_hposgld.{MOVED[old]}"
    *parents, name = f"keras_hposgld.{old}".split(".")
    if len(parents) > 1:
        parent = importlib.import_module(".".join(parents))
        assert getattr(parent, name) is module


@pytest.mark.parametrize(
    "path, name, value",
    [
        ("sgld", "SGLD", hs.SGLD),
        ("problem", "BilevelProblem", hs.BilevelProblem),
        ("hyperparameters.regularizers", "LearnableL2", None),
        ("hyperparameters.losses", "LearnableTaylorLoss", None),
        ("hyperparameters.augmentation", "LearnableAffine", None),
        ("lists", "zeros_like", None),
        ("estimators.loop", "run_steps", None),
        ("derivatives", "linearize_gradient", None),
    ],
)
def test_old_import_paths_have_the_old_names(path, name, value):
    module = importlib.import_module(f"keras_hposgld.{path}")
    found = getattr(module, name)
    assert found is value or (value is None and callable(found))


@pytest.mark.parametrize("path", ["losses", "regularizers", "layers"])
def test_public_wings_are_modules_to_import(path):
    module = importlib.import_module(f"keras_hposgld.{path}")
    assert module is getattr(hs, path)
    assert all(callable(getattr(module, name)) for name in module.__all__)
