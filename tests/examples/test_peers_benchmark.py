"""The comparison with other libraries, those that are installed, tiny."""

import csv
import pathlib

import numpy as np
import pytest
from test_examples import EXAMPLES
from test_examples import load

pytestmark = pytest.mark.slow

UNROLLED = ["higher", "torchopt", "jax", "jax_loop", "jaxopt", "optimistix"]


def test_peers_benchmark(tmp_path, capsys):
    benchmark = load("peers", EXAMPLES / "benchmarks")
    rows, races = benchmark.main(
        ["--quick", "--output", str(tmp_path), "--methods", "hpo_sgld"]
        + ["hpo_sgld_xla", "rmd", *UNROLLED]
    )
    printed = capsys.readouterr().out
    for row in rows:
        assert row["status"] == "ok", row
        assert row["seconds"] > 0 and row["relative"] > 0, row
        # A few steps of HPO-SGLD leave out little; it is no exact method.
        is_sampled = row["method"].startswith("hpo_sgld")
        others = {"rmd": 0.9999}.get(row["method"], 0.999)
        smallest = 0.9 if is_sampled else others
        assert row["cosine"] > smallest, row
        if not is_sampled:
            assert abs(row["norm_ratio"] - 1) < 1e-3, row
    measured = {(row["model"], row["T"], row["method"]) for row in rows}
    assert {("mlp", 2, "rmd"), ("cnn", 4, "rmd")} <= measured
    for method in UNROLLED:
        # Measured, or named with the way to install it.
        name = benchmark.METHODS[method].label
        skipped = f"{name}: skipped" in printed
        assert skipped != any(row["method"] == method for row in rows), method
        assert not skipped or 'install -e ".[peers]"' in printed
    for name, race in races.items():
        assert race["stopped"] is None, name
        assert np.all(np.isfinite(race["curve"])), name
    with pathlib.Path(tmp_path / "peers.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    for name in ("peers.txt", "peers_race.csv", "peers.png", "peers_race.png"):
        assert (tmp_path / name).stat().st_size > 100, name


def test_what_ends_early_is_reported():
    benchmark = load("peers", EXAMPLES / "benchmarks")
    jobs = [("measure", {"adapter": "none", "quick": True})] * 2
    # There is no such adapter; and no process ends in a millisecond.
    failed = benchmark.run_apart(jobs, limit=60)
    for result in failed:
        assert result["status"].startswith("failed: ModuleNotFoundError:")
    late = benchmark.run_apart(jobs, limit=0.001)
    assert [result["status"] for result in late] == ["over 0.001 s"] * 2
