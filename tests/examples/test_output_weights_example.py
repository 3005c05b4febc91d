"""The example of several outputs in its quick mode."""

import re

import pytest
from test_examples import load

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:The hyperparameters were updated")
def test_learn_output_weights(capsys):
    load("learn_output_weights").main(quick=True)
    rows = capsys.readouterr().out.splitlines()
    names = [row.split()[1] for row in rows]
    assert names == ["main", "all", "good", "learned"]
    weights, accuracies = re.findall(r"\[(.*?)\]", rows[-1])
    main, *learned = map(float, weights.split())
    assert main == 1.0 and 1.0 not in learned  # two chains have moved them
    assert all(0 < float(number) < 1 for number in accuracies.split())
