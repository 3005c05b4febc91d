"""The experiment on the defaults, and the demo that shares its methods."""

import importlib
import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the experiments need scikit-learn")

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"

# Quick runs are too short for anything to be learned.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The hyperparameters were updated"
)


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # as for a script that is run
    methods = importlib.import_module("learning.methods")
    for name in ("NUM_EPOCHS", "STEPS", "GRID"):  # which a quick run changes
        monkeypatch.setattr(methods, name, getattr(methods, name))
    return importlib.import_module


@pytest.mark.parametrize("name", ["digits", "friedman", "breast_cancer"])
def test_parts_of_a_split_are_disjoint_and_standardized(load, name):
    sets = load("learning.sets")
    split, again, other = (
        sets.load(getattr(sets, name), seed) for seed in (1, 1, 2)
    )
    rows = np.concatenate([part[0] for part in split[:3]])
    assert len(np.unique(rows, axis=0)) == len(rows)
    np.testing.assert_array_equal(split.test[0], again.test[0])
    assert not np.array_equal(split.inner[0], other.inner[0])
    x, y = split.inner
    whole = (x.std(axis=0) > 0) & (np.abs(x).max(axis=0) < 5.0)  # not cut off
    np.testing.assert_allclose(x[:, whole].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(x[:, whole].std(axis=0), 1, atol=1e-5)
    assert whole.mean() > 0.5
    assert np.abs(rows).max() <= 5.0
    assert len(split.everything[0]) == len(x) + len(split.outer[0])
    if name == "friedman":
        assert split.num_classes == 0
        assert y.std() == pytest.approx(1.0, abs=1e-5)
    else:
        assert split.num_classes == y.max() + 1


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_constant_is_chosen_on_outer_data_and_paid_for(load, monkeypatch):
    methods, sets = load("learning.methods"), load("learning.sets")
    monkeypatch.setattr(methods, "GRID", (1e-3, 300.0))
    monkeypatch.setattr(methods, "NUM_EPOCHS", 3)
    monkeypatch.setattr(methods, "STEPS", 20)
    split = sets.load(sets.wine, 0)
    best, everything = methods.constants(split, 0)
    assert best["decay"] == everything["decay"] == 1e-3  # 300 leaves nothing
    assert everything["seconds"] > best["seconds"]
    assert everything["loss"] != best["loss"]
    # Each run is one of its own: as if there had been none before it.
    model = methods.compiled(split, 0, 1e-3)
    methods.train(model, split.everything, 0)
    loss, _ = methods.score(model, split.test)
    assert everything["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_confirming_prints_every_row(load, tmp_path, capsys):
    path = tmp_path / "rows.json"
    load("defaults").main(
        ["confirm", "--quick", "--seeds", "1", "--sets", "wine"]
        + ["--output", str(path)]
    )
    printed = capsys.readouterr().out
    rows = json.loads(path.read_text())
    methods = [row["method"] for row in rows]
    assert methods[:3] == [
        "Adam, early stopping",
        "best constant",
        "best constant, on everything",
    ]
    assert "callback, refit on everything" in methods
    assert all(method in printed for method in methods)
    assert all(np.isfinite(row["loss"]) for row in rows)


@pytest.mark.slow
def test_demo(load, tmp_path, capsys):
    load("demo").main(["--quick", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    for method in ("early stopping", "on everything", "BilevelModel"):
        assert method in printed
    for name in ("demo_map.png", "demo_course.png"):
        assert (tmp_path / name).stat().st_size > 10_000
        assert str(tmp_path / name) in printed
