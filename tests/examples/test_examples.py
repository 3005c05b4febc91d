"""The examples in their quick mode, and the long run that must stay finite."""

import importlib.util
import pathlib
import sys

import keras
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


def load(name, folder=EXAMPLES):
    pytest.importorskip("sklearn", reason="the examples need scikit-learn")
    pytest.importorskip("matplotlib", reason="the examples need matplotlib")
    if str(folder) not in sys.path:  # as for a script that is run
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_learn_feature_relevance(tmp_path, capsys):
    example = load("learn_feature_relevance")
    example.main(["--quick", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    for method in ("one per input", "refit on all", "trained on all"):
        assert method in printed
    for name in ("feature_relevance_map.png", "feature_relevance_course.png"):
        assert (tmp_path / name).stat().st_size > 10_000
        assert str(tmp_path / name) in printed


@pytest.mark.slow
def test_strengths_do_not_diverge_over_a_thousand_outer_iterations():
    example = load("learn_feature_relevance")
    keras.utils.set_random_seed(0)
    inner, outer, test = example.load_data(0)
    learner, _ = example.train_learned(
        "parameter", inner, outer, epochs=100, hyper_learning_rate=0.1
    )
    assert int(learner.outer_iterations) == 1000
    for value in learner.hyperparameter_values().values():
        assert np.all(np.isfinite(value)) and value.max() <= 5.0
    for weight in learner.trainable_variables:
        assert np.all(np.isfinite(weight))
    assert int(learner.outer_level.guard.skipped_in_a_row) == 0
    accuracy, loss = example.score(learner, test)
    assert accuracy > 0.5 and np.isfinite(loss)


def test_polynomial_toy(tmp_path, capsys):
    example = load("polynomial_toy")
    found, averaged, share = example.main(
        ["--quick", "--output", str(tmp_path)]
    )
    # Averaging always finds the true coefficient. A random optimum does so in
    # about a fifth of the runs: 10 000 runs gave 0.195.
    assert averaged == 20
    assert found < 12
    assert 0.05 < share < 0.4
    assert (tmp_path / "polynomial_toy.png").stat().st_size > 10_000
    assert "theta_2" in (tmp_path / "polynomial_toy.csv").read_text()


@pytest.mark.slow
def test_synthetic_1d(tmp_path):
    example = load("synthetic_1d")
    table_2, sizes, table_3 = example.main(
        ["--quick", "--output", str(tmp_path)]
    )
    errors = {row[0]: row[5] for row in table_2}
    # Even 20 inner steps are enough for these where the noise is absent.
    for name in ("HPO-SGLD", "AdjointSGLD (ours)", "IFT-CG", "RMD", "FMD"):
        assert errors[name] < 1e-3, name
    assert abs(errors["RMD"] - errors["FMD"]) < 1e-6
    assert len(table_3) == 14
    for name in ("table2.csv", "table3.csv", "figure2.png", "figure3.png"):
        assert (tmp_path / f"synthetic_1d_{name}").stat().st_size > 500


def test_exact_solution_of_the_synthetic_problem():
    example = load("synthetic_1d")
    strength, theta = example.exact_solution()
    assert theta == pytest.approx(np.sqrt(1 - strength**2))

    def outer(value):
        solution = np.sqrt(1 - value**2)
        return (value - solution) ** 2 + (solution - 0.5) ** 2

    slope = (outer(strength + 1e-5) - outer(strength - 1e-5)) / 2e-5
    assert abs(slope) < 1e-8


@pytest.mark.slow
def test_complexity_benchmark(tmp_path):
    example = load("complexity", EXAMPLES / "benchmarks")
    lines = example.main(["--quick", "--output", str(tmp_path)])
    assert {line[1] for line in lines} == set(example.METHODS)
    assert all(line[4] > 0 for line in lines)
    for name in ("complexity.csv", "complexity.png"):
        assert (tmp_path / name).stat().st_size > 100
