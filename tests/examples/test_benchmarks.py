"""The benchmarks in their quick mode: that they run, never how fast."""

import pytest
from test_examples import EXAMPLES
from test_examples import load

pytestmark = pytest.mark.slow


def test_step_cost(tmp_path):
    example = load("step_cost", EXAMPLES / "benchmarks")
    ratios, phases = example.main(
        ["--quick", "--models", "cnn", "--output", str(tmp_path)]
    )
    assert set(example.QUICK_ROWS) < set(ratios["cnn"])
    assert set(example.QUICK_ROWS) < set(example.rows(4))
    for row in (*ratios["cnn"].values(), *phases["cnn"].values()):
        assert row > 0
    table = (tmp_path / "step_cost.txt").read_text()
    assert "AdjointSGLD" in table and "inner gradient" in table


def test_sizes_of_the_models():
    example = load("models", EXAMPLES / "benchmarks")
    sizes = {
        name: example.make_model(
            name, example.data_for(name, 1)[0].shape[1:]
        ).count_params()
        for name in example.SIZES
    }
    assert sizes["mlp"] == 669_706
    assert 220_000 < sizes["cnn"] < 230_000
    assert 265_000 < sizes["resnet20"] < 275_000
    assert 780_000 < sizes["vit"] < 820_000


# Matplotlib's: a tiny run takes no memory that can be measured.
@pytest.mark.filterwarnings("ignore:Data has no positive values")
def test_memory(tmp_path):
    example = load("memory", EXAMPLES / "benchmarks")
    lines = example.main(["--quick", "--output", str(tmp_path)])
    assert {line[1] for line in lines} == set(example.QUICK_METHODS)
    # A tiny model may not show beyond what stood before.
    assert all(line[4] >= 0 for line in lines)
    assert all((line[5] > 0) == (line[1] in example.LEARNED) for line in lines)
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_vit_b16(tmp_path):
    pytest.importorskip("keras_hub", reason="the model is KerasHub's")
    example = load("vit_b16", EXAMPLES / "benchmarks")
    results = example.main(
        ["--quick", "--methods", "plain Adam", "HPO-SGLD"]
        + ["--output", str(tmp_path)]
    )
    weights, hyperparameters, seconds, before, peak = results["HPO-SGLD"]
    assert weights == hyperparameters == results["plain Adam"][0]
    assert seconds > 0 and peak >= before > 0
    assert "HPO-SGLD" in (tmp_path / "vit_b16.txt").read_text()


def test_shortcuts(tmp_path):
    example = load("shortcuts", EXAMPLES / "benchmarks")
    results = example.main(["--quick", "--output", str(tmp_path)])
    assert len(results) == 4
    for case, found in results.items():
        cosines = {row: cosine for row, (cosine, _) in found.items()}
        for name in example.ESTIMATORS:
            near, far = (cosines[f"{name}, outer_every={k}"] for k in (2, 5))
            assert far < near < 1.0, case  # it goes with the interval
        # A difference of gradients is nearer than a gradient left out.
        assert cosines["AdjointSGLD, difference"] > 0.98, case
    assert "AdjointSGLD" in (tmp_path / "shortcuts.txt").read_text()
