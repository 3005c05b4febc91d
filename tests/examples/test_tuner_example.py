"""The example of a search with KerasTuner in its quick mode."""

import re

import pytest
from test_examples import load

pytestmark = pytest.mark.slow


def test_tune_width_and_rate(capsys):
    pytest.importorskip("keras_tuner", reason="the example searches with it")
    load("tune_width_and_rate").main(["--quick"])
    printed = capsys.readouterr().out
    # The best trial comes first, and learns the same when it is alone.
    best, other = re.findall(r"median of the learned decays: (.+)", printed)
    (alone,) = re.findall(r"best, alone: (.+)", printed)
    assert best == alone != other
    assert printed.count("val_loss") == 4  # two trials of each search
    for name in ("learned decays", "no decay"):
        assert f"{name}: test accuracy 0." in printed
