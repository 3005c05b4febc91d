"""The experiment on learned dropout rates, in its quick mode."""

import gzip
import importlib.util
import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the experiments need scikit-learn")

PATH = pathlib.Path(__file__).parents[2] / "experiments" / "dropout.py"


@pytest.fixture
def experiment():
    spec = importlib.util.spec_from_file_location("dropout_rates", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def reviews(tmp_path):
    """A folder with sentences of ten words, of which one tells the label."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "text"
    folder.mkdir()
    with gzip.open(folder / "mr.jsonl.gz", "wt", encoding="utf-8") as file:
        for number in range(5000):
            label = number % 2
            words = [f"word{i}" for i in rng.integers(0, 50, 9)]
            words.append("good" if label else "bad")
            row = {"text": " ".join(words), "label": label}
            file.write(json.dumps(row) + "\n")
    return tmp_path


def test_parts_share_no_sentence(experiment, reviews):
    parts = experiment.film_reviews(1, reviews)
    assert [len(x) for x, _ in parts] == [3000, 1500, 500]
    assert all(0.4 < y.mean() < 0.6 for _, y in parts)
    again = experiment.film_reviews(1, reviews)
    np.testing.assert_array_equal(parts[0][0], again[0][0])
    rows = np.concatenate([x for x, _ in parts])
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The hyperparameters were updated")
def test_all_rows_are_printed(
    experiment, reviews, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(experiment, "GRID", (0.0, 0.5))
    monkeypatch.setattr(experiment, "STARTS", (0.2,))
    out = tmp_path / "rows.json"
    arguments = ["--quick", "--seeds", "2", "--out", str(out)]
    arguments += ["--data", str(reviews), "--sets", "film_reviews"]
    rows = experiment.main(arguments)
    assert json.loads(out.read_text()) == rows
    assert len(rows) == 2 * (2 + 1 + 3)
    assert all(np.isfinite(row["loss"]) for row in rows)
    printed = capsys.readouterr().out
    for name in {row["method"] for row in rows}:
        assert f"| {name} |" in printed
    # The best of the grid is the row with the best outer loss, at the price
    # of all; what is learned has a rate for each layer and has moved.
    *grid, best, gaussian, clipped, constant = rows[6:]
    assert best["loss"] == min(grid, key=lambda r: r["outer_loss"])["loss"]
    assert best["seconds"] == sum(row["seconds"] for row in grid)
    for row in (gaussian, clipped):
        assert len(row["rates"]) == 2
        assert not np.allclose(row["rates"], 0.2, rtol=1e-3)
    assert constant["rates"] == gaussian["rates"]
