"""The experiment on the evidence: its sets, measures, rows and tables."""

import importlib
import itertools
import pathlib
import time

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the experiments need scikit-learn")

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # as for a script that is run
    return importlib.import_module


def a_split(load, task="regression", **options):
    sets = load("posterior.sets")
    x = np.arange(40, dtype="float32").reshape(20, 2)
    y = np.linspace(-1, 1, 20) if task == "regression" else np.arange(20) % 2
    return sets.Split(x, y, x[:4], y[:4], task, **options)


@pytest.mark.parametrize("name", ["digits_noise", "breast_cancer", "diabetes"])
def test_parts_are_disjoint_and_in_units_of_the_training_part(load, name):
    sets = load("posterior.sets")
    split, again, other = (sets.load(name, n) for n in (1, 1, 2))
    rows = np.concatenate([split.x, split.x_test])
    assert len(np.unique(rows, axis=0)) == len(rows)
    np.testing.assert_array_equal(split.x, again.x)
    assert split.x.shape != other.x.shape or (split.x != other.x).any()
    whole = np.abs(split.x).max(axis=0) < sets.FARTHEST  # not cut off
    assert whole.mean() > 0.9
    np.testing.assert_allclose(split.x[:, whole].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(split.x[:, whole].std(axis=0), 1, atol=1e-5)
    if split.task == "classes":
        shares = [np.bincount(y) / len(y) for y in (split.y, split.y_test)]
        # Counts are rounded, in both parts.
        np.testing.assert_allclose(
            *shares, atol=1 / len(split.y_test) + 1 / len(split.y)
        )
    else:
        assert split.y.std() == pytest.approx(1.0)
        x, y = importlib.import_module("sklearn.datasets").load_diabetes(
            return_X_y=True
        )
        values = np.concatenate([split.y, split.y_test])
        values = split.center + split.scale * values
        np.testing.assert_allclose(np.sort(values), np.sort(y))


def test_every_set_is_of_one_task_and_listed_once(load):
    sets = load("posterior.sets")
    assert sorted(sets.ALL) == sorted(sets.REGRESSIONS + sets.CLASSES)
    assert set(sets.UCI) | set(sets.BIG) <= set(sets.ALL)
    with pytest.raises(ValueError, match="Received: tables"):
        sets.load("tables", 0)


def test_measures_are_those_of_the_targets_in_their_units(load):
    rows = load("posterior.rows")
    split = a_split(load, center=7.0, scale=3.0)
    mean = split.y_test + np.array([1.0, -1.0, 1.0, -1.0])
    error, nll = rows.measures(split, (mean, np.full(4, 2.0)))
    assert error == pytest.approx(3.0)
    # A normal density of deviation 6, half a deviation from its middle.
    expected = 0.5 * 0.5**2 + np.log(6 * np.sqrt(2 * np.pi))
    assert nll == pytest.approx(expected)
    split = a_split(load, "classes")  # 0, 1, 0, 1
    law = np.array([[0.9, 0.1], [0.4, 0.6], [0.0, 1.0], [0.5, 0.5]])
    error, nll = rows.measures(split, law)
    assert error == pytest.approx(0.5)
    expected = -np.log([0.9, 0.6, 1e-12, 0.5]).mean()
    assert nll == pytest.approx(expected)
    law[0] = np.nan
    assert np.isnan(rows.measures(split, law)[1])


def test_a_fit_that_takes_too_long_or_fails_has_a_row(load):
    rows = load("posterior.rows")

    def endless(*arguments):
        until = time.process_time() + 10
        while time.process_time() < until:
            try:
                sum(range(1000))
            except Exception:  # as libraries do
                time.sleep(0)

    def broken(*arguments):
        raise ArithmeticError("no\ninverse")

    row = rows.run(endless, a_split(load), 0, limit=0.05)
    assert row["note"] == rows.TOO_LONG
    assert np.isnan(row["error"])
    row = rows.run(broken, a_split(load), 0, limit=60)
    assert row["note"] == "ArithmeticError: no inverse"


@pytest.mark.parametrize("task", ["regression", "classes"])
def test_rivals_learn_what_is_easy(load, monkeypatch, task):
    rivals, rows = load("posterior.rivals"), load("posterior.rows")
    monkeypatch.setattr(rivals, "NUM_TREES", 20)
    monkeypatch.setattr(rivals, "DECAYS", rivals.DECAYS[1:2])
    monkeypatch.setattr(rivals, "NUM_FOLDS", 2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 3)).astype("float32")
    y = x[:, 0] + 0.1 * rng.normal(size=150)
    if task == "classes":
        y = (y > 0).astype(int)
    split = load("posterior.sets").Split(x[:90], y[:90], x[90:], y[90:], task)
    for name, method in rivals.METHODS.items():
        if task == "classes" and name in ("ard", "bayesian_ridge"):
            with pytest.raises(load("posterior.left_out").LeftOut):
                rows.run(method, split, 0)
            continue
        row = rows.run(method, split, 0)
        assert not row["note"], name
        # The mean of the targets has an error of 1, a guess of a class one of
        # a half, and a log-likelihood of -1.4 and of -0.7.
        assert row["error"] < (0.5 if task == "regression" else 0.2), name
        assert row["nll"] < (1.0 if task == "regression" else 0.5), name


@pytest.mark.parametrize("name", ["laplace", "lassonet"])
@pytest.mark.parametrize("task", ["regression", "classes"])
def test_rivals_of_optional_packages(load, monkeypatch, name, task):
    torch_rivals, rows = load("posterior.torch_rivals"), load("posterior.rows")
    monkeypatch.setattr(torch_rivals, "NUM_STEPS", 20)
    short = {"n_iters": (5, 2), "lambda_start": 1.0, "path_multiplier": 2.0}
    monkeypatch.setattr(torch_rivals, "PATH", short)
    monkeypatch.setattr(load("posterior.rivals"), "NUM_FOLDS", 2)
    methods = [m for m in torch_rivals.METHODS if m.startswith(name)]
    assert methods
    split = a_split(load, task)
    split = split._replace(x=split.x / 20 - 1, x_test=split.x_test / 20 - 1)
    wide = [np.tile(x, 30) for x in (split.x, split.x_test)]
    wide = split._replace(x=wide[0], x_test=wide[1])
    for method, data in itertools.product(methods, (split, wide)):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(load("posterior.left_out").LeftOut, match=name):
                rows.run(torch_rivals.METHODS[method], data, 0)
            continue
        row = rows.run(torch_rivals.METHODS[method], data, 0)
        assert not row["note"], method


def test_who_is_ahead_is_asked_on_shared_splits(load):
    tables = load("posterior.tables")

    def row(name, split, method, error, nll):
        keys = ("set", "split", "method", "error", "nll")
        values = (name, split, method, error, nll)
        return dict(zip(keys, values, strict=True))

    rows = [
        row("a", 0, "one", 1.0, 1.0),
        row("a", 0, "other", 2.0, 2.0),
        row("a", 1, "one", 9.0, 9.0),  # which the other has not
        row("a", 1, "other", np.nan, np.nan),
        row("b", 0, "one", 1.0, 2.0),
        row("b", 0, "other", 2.0, 1.0),
        row("c", 0, "one", 1.0, 1.0),
    ]
    assert tables.ahead(rows, "one", "other").tolist() == [1, 2, 1, 2]
    assert tables.ahead(rows, "other", "one").tolist() == [0, 0, 1, 2]
    ranks = tables.mean_ranks(rows, "nll")
    assert ranks == {"one": (pytest.approx(4 / 3), 3), "other": (1.5, 2)}
    assert tables.mean_and_error([1.0, 3.0]) == (2.0, pytest.approx(1.0))


def test_a_line_of_the_page_says_how_many_splits_it_is_of(load, capsys):
    tables = load("posterior.tables")
    rows = [
        dict(set="a", split=split, method=method, error=error, nll=0.0)
        for split, method, error in (
            (0, "one", 1.0),
            (1, "one", 2.0),
            (0, "other", 1.2345),
        )
    ]
    tables.show_markdown(rows, "error")
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines == [
        "| error | splits | one | other |",
        "| --- | ---: | ---: | ---: |",
        "| a | 2 | **1.5** | 1.23 (1) |",  # of the first split: 1 and 1.23
    ]


def test_command_resumes(load, monkeypatch, tmp_path, capsys):
    evidence, out = load("evidence"), tmp_path / "rows.csv"
    calls = []

    def method(x, y, x_test, task, seed):
        calls.append(seed)
        return np.zeros(len(x_test)), np.ones(len(x_test))

    def slow(*arguments):
        calls.append("slow")
        raise load("posterior.rows").TooLong

    monkeypatch.setitem(evidence.METHODS, "forest", method)
    monkeypatch.setitem(evidence.METHODS, "ard", slow)
    command = ["--out", str(out), "--methods", "forest,ard", "--sets"]
    evidence.main([*command, "diabetes,concrete", "--splits", "2"])
    assert calls == [0, "slow", 1]
    printed = capsys.readouterr().out
    assert "concrete: left out, it needs --data" in printed
    assert "diabetes ard: left out, over 300.0 s" in printed
    evidence.main([*command, "diabetes", "--splits", "3"])
    assert calls == [0, "slow", 1, 2]
    printed = capsys.readouterr().out
    assert "no fit  too long" in printed
    rows = load("posterior.rows").read(out)
    assert [(r["split"], r["method"]) for r in rows] == [
        (0, "forest"),
        (0, "ard"),
        (1, "forest"),
        (2, "forest"),
    ]
    # The mean of the training part, and the deviation of the targets.
    assert 60 < rows[0]["error"] < 100
    with pytest.raises(SystemExit):
        evidence.main([*command, "tables"])
