"""Import paths of version 0.1.0."""

import importlib

import pytest

import keras_hposgld as hs


@pytest.mark.parametrize(
    "path, name, value",
    [
        ("sgld", "SGLD", hs.SGLD),
        ("problem", "BilevelProblem", hs.BilevelProblem),
        ("lists", "zeros_like", None),
        ("estimators.loop", "run_steps", None),
        ("derivatives", "linearize_gradient", None),
    ],
)
def test_old_import_paths_lead_to_the_moved_modules(path, name, value):
    module = importlib.import_module(f"keras_hposgld.{path}")
    found = getattr(module, name)
    assert found is value or (value is None and callable(found))
