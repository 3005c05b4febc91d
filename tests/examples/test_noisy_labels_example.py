"""The example of noisy labels in its quick mode."""

from test_examples import load


def test_noisy_labels(capsys):
    example = load("noisy_labels")
    scores, rate, auc = example.main(["--quick"])
    # After two epochs Adam has not yet fitted the wrong labels.
    assert scores["noise model"] > 0.8
    assert 0.1 < rate < 0.4
    assert auc > 0.9
    assert "found: " in capsys.readouterr().out


def test_as_many_labels_are_flipped_as_it_says():
    _, noisy, true, *_ = load("noisy_labels").load_data()
    # Three standard errors of a share of 898 labels.
    assert abs((noisy != true).mean() - 0.3) < 0.046
