"""The example of several outputs in its quick mode."""

import re

import pytest
from test_examples import load

pytestmark = pytest.mark.slow


@pytest.mark.filterwarnings("ignore:The hyperparameters were updated")
def test_learn_output_weights(capsys):
    load("learn_output_weights").main(quick=True)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[1] for row in rows] == [
        "main",
        "all",
        "good",
        "learned",
    ]
    weights, accuracies = re.findall(r"\[(.*?)\]", rows[-1])
    main, odd, loops, noise = map(float, weights.split())
    assert main == 1.0 and 1.0 not in (odd, loops, noise)
    assert noise < min(odd, loops)  # after two chains already
    assert all(0 < float(number) < 1 for number in accuracies.split())
