"""Two worker processes on this machine, through the example's launcher."""

import pathlib

import numpy as np
import pytest
from test_examples import load


def assert_same(learned):
    alone = learned["alone"]
    # In the order of the file: weights and hyperparameters, predictions, the
    # last line of the history, what `evaluate` gave.
    assert len(alone) > 10
    for name in ("worker_0", "worker_1"):
        for a, b in zip(learned[name], alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    for a, b in zip(learned["worker_0"], learned["worker_1"], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["hpo_sgld", "ift_cg", "rmd"])
def test_two_workers_learn_what_one_process_does(tmp_path, estimator):
    example = load("multi_worker")
    learned = example.main(
        ["--quick", "--folder", str(tmp_path), "--estimator", estimator]
    )
    assert_same(learned)


@pytest.mark.slow
def test_worker_that_is_killed_goes_on_to_the_same_end(tmp_path, capsys):
    example = load("multi_worker")
    learned = example.main(
        ["--quick", "--kill", "--estimator", "adjoint_sgld"]
        + ["--folder", str(tmp_path)]
    )
    assert "one worker was killed" in capsys.readouterr().out
    assert_same(learned)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["hpo_sgld", "rmd"])
def test_initial_weights_are_learned_on_two_workers(tmp_path, estimator):
    example = load("multi_worker")
    options = example.parse(
        ["--quick", "--folder", str(tmp_path), "--estimator", estimator]
    )
    script = pathlib.Path(__file__).with_name("meta_worker.py")
    assert_same(example.launch(options, script=str(script)))
