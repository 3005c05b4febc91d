"""The examples in their quick mode, and the long run that must stay finite."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def load(name):
    pytest.importorskip("sklearn", reason="the examples need scikit-learn")
    pytest.importorskip("matplotlib", reason="the examples need matplotlib")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    assert int(learner.guard.skipped_in_a_row) == 0
    accuracy, loss = example.score(learner, test)
    assert accuracy > 0.5 and np.isfinite(loss)
