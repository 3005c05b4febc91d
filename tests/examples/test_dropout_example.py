"""The example that learns a dropout rate for each input, in quick mode."""

import numpy as np
import pytest
from test_examples import load

pytestmark = pytest.mark.slow


def test_learn_dropout(capsys):
    example = load("learn_dropout")
    inner, outer, test = example.load_data()
    assert [len(part[1]) for part in (inner, outer, test)] == [300, 300, 1197]
    rates, scores = example.main(["--quick"])
    assert rates.shape == (128,)
    assert np.all((rates > 0) & (rates < 0.9)) and np.ptp(rates) > 0.01
    assert set(scores) == {"learned", "no dropout", "constant"}
    assert all(np.all(np.isfinite(score)) for score in scores.values())
    assert "mean learned rate" in capsys.readouterr().out
