"""The experiment on noisy labels: its data, its methods, its rows."""

import importlib
import pathlib

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the experiments need scikit-learn")

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # as for a script that is run
    return importlib.import_module


def test_only_training_labels_are_flipped(load):
    methods = load("labels.methods")
    task = load("labels.tasks").small_task("digits", 1)
    x, noisy, true = task.train
    assert len(x) == len(noisy) == 898 and len(task.test[0]) == 899
    # Three standard errors.
    assert abs(np.mean(noisy != true) - 0.3) < 0.046
    matrix = methods.true_matrix(task)
    np.testing.assert_allclose(matrix.sum(1), 1.0)
    np.testing.assert_allclose(
        np.diag(matrix)[4],
        0.999 * np.mean(noisy[true == 4] == 4) + 1e-4,
    )
    # The oracle has that matrix, also where it is weak.
    held = methods.forward(task).noise_matrix()
    np.testing.assert_allclose(held, matrix, rtol=1e-5)


def test_rows_are_added_once_and_shown(load, tmp_path, capsys, monkeypatch):
    experiment = load("noisy_labels")
    monkeypatch.setattr(load("labels.methods"), "STEPS", 20)
    out = tmp_path / "rows.csv"
    arguments = ["--out", str(out), "--sets", "wine,cifar10n", "--seeds", "1"]
    arguments += ["--methods", "rate,logistic,right"]  # the last needs outer
    for _ in range(2):
        experiment.main(arguments)
        printed = capsys.readouterr().out
        assert "cifar10n: left out, it needs --data" in printed
        rows = experiment.row_file.read(out)
        assert [row["method"] for row in rows] == ["rate", "logistic"]
        for row in rows:
            assert 0.4 < float(row["accuracy"]) <= 1
            assert f"wine 1 {row['method']} {row['accuracy']}" in printed
