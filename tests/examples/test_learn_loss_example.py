"""The example of learned losses in its quick mode, on data at hand."""

import numpy as np
import pytest
from test_examples import load

pytestmark = pytest.mark.slow


def test_learn_loss_fashion_mnist(tmp_path, capsys):
    example = load("learn_loss_fashion_mnist")
    (run,) = example.main(
        [
            *("--quick", "--data", "digits", "--output", str(tmp_path)),
            *("--estimators", "hpo_sgld", "rmd_fo"),
        ]
    )
    learned = ["HPO-SGLD", "RMD-FO"]
    assert set(run.rows) == {
        example.PLAIN,
        example.STOPPED,
        example.SMOOTHED,
        example.BOTH,
        example.OUTER,
        example.SMOOTHING,
        *learned,
        *map(example.trained_on, learned),
    }
    for name, row in run.rows.items():
        assert np.all(np.isfinite(row)) and 0 < row[0] <= 1, name
    start = example.hs.losses.LearnableTaylorLoss().constrained()
    for name in learned:
        change = run.losses[name].constrained() - start
        assert np.abs(change).max() > 0.01, name
        assert len(run.courses[name]) == 2, name

    printed = capsys.readouterr().out
    picture = tmp_path / "learn_loss_fashion_mnist.png"
    assert picture.stat().st_size > 10_000
    assert str(picture) in printed
    table = (tmp_path / "learn_loss_fashion_mnist.txt").read_text()
    assert len(table.splitlines()) == 2 + len(run.rows)
    assert table in printed


def test_only_training_labels_are_redrawn():
    example = load("learn_loss_fashion_mnist")
    rng = np.random.default_rng(0)
    x = np.arange(20_000)
    y = rng.integers(0, 10, 20_000)
    inner, outer, both = example.make_data((x, y), (15_000, 5_000), seed=1)
    assert not set(inner[0]) & set(outer[0])
    np.testing.assert_array_equal(outer[1], y[outer[0]])
    # A tenth of those redrawn stay as they were; 5 standard errors.
    share = np.mean(inner[1] != y[inner[0]])
    assert abs(share - 0.36) < 5 * np.sqrt(0.36 * 0.64 / 15_000)
    for part, first, second in zip(both, inner, outer, strict=True):
        np.testing.assert_array_equal(part, np.concatenate([first, second]))


def test_picture_shows_the_loss_that_is_trained_with():
    example = load("learn_loss_fashion_mnist")
    loss = example.hs.losses.LearnableTaylorLoss()
    loss.variable.assign(np.linspace(-1, 2, 8))
    y = np.array([[0.2, 0.5, 0.3]])
    expected = np.mean(
        [
            example.loss_of_one_output(loss, target, probability)
            for target, probability in zip((0, 1, 0), y[0], strict=True)
        ]
    )
    np.testing.assert_allclose(loss(np.array([1]), y), expected, rtol=1e-5)


def test_missing_images_are_explained(monkeypatch):
    example = load("learn_loss_fashion_mnist")

    def fail():
        raise OSError("no network")

    monkeypatch.setattr(example.keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(SystemExit, match="--keras-home"):
        example.load_images(example.parse([]))
    monkeypatch.setenv("KERAS_HOME", "elsewhere")
    with pytest.raises(ValueError, match="command line"):
        example.load_images(example.parse(["--keras-home", "folder"]))
