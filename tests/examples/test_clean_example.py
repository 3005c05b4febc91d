"""The example of data cleaning in its quick mode, on data at hand."""

import numpy as np
import pytest
from test_examples import load


@pytest.mark.slow
def test_clean_fashion_mnist(tmp_path, capsys):
    example = load("clean_fashion_mnist")
    results = example.main(
        [
            *("--quick", "--data", "digits", "--output", str(tmp_path)),
            *("--estimators", "hpo_sgld", "rmd_fo", "--models", "linear"),
        ]
    )
    ((key, (run,)),) = results.items()
    assert key == ("linear", 0.5)
    learned = ["HPO-SGLD", "RMD-FO"]
    assert set(run.rows) == {
        example.NONE,
        example.OUTER,
        example.BOTH,
        example.FILTER,
        *learned,
        *map(example.retrained, learned),
    }
    for name, row in run.rows.items():
        assert np.all(np.isfinite(row)) and 0 < row[0] <= 1, name
    for name in learned:
        assert run.weights[name].shape == (200,), name
        # RMD-FO sees the last step of a chain alone.
        moved = run.weights[name] != 0.5
        assert np.any(moved) and (name == "RMD-FO" or np.all(moved)), name
        assert len(run.courses[name]) == 2, name

    printed = capsys.readouterr().out
    picture = tmp_path / "clean_fashion_mnist.png"
    assert picture.stat().st_size > 10_000
    assert str(picture) in printed
    table = (tmp_path / "clean_fashion_mnist.txt").read_text()
    assert len(table.splitlines()) == 3 + len(run.rows)
    assert table in printed


def test_only_training_labels_are_redrawn_and_what_is_bad_is_known():
    example = load("clean_fashion_mnist")
    rng = np.random.default_rng(0)
    x = np.arange(20_000)
    y = rng.integers(0, 10, 20_000)
    inner, outer, is_bad = example.make_data((x, y), (15_000, 5_000), 0.7, 1)
    assert not set(inner[0]) & set(outer[0])
    np.testing.assert_array_equal(outer[1], y[outer[0]])
    np.testing.assert_array_equal(is_bad, inner[1] != y[inner[0]])
    # A tenth of those redrawn stay as they were; 5 standard errors.
    assert abs(is_bad.mean() - 0.63) < 5 * np.sqrt(0.63 * 0.37 / 15_000)


def test_weights_that_are_small_for_bad_labels_have_a_large_auc():
    example = load("clean_fashion_mnist")
    options = example.parse(["--quick", "--data", "digits"])
    pool, test = example.load_images(options)
    run = example.Experiment(options, pool, test, "linear", 0.5, 0, print)
    assert run.auc(-np.where(run.is_bad, 0.2, 0.7)) == 1.0
    # A model that knows the true labels suspects exactly the bad ones.
    x, y = run.inner
    truth = {image.tobytes(): label for image, label in zip(*pool, strict=True)}
    known = [truth[image.tobytes()] for image in x]
    assert run.auc_of_loss(lambda x, training: 9 * np.eye(10)[known]) == 1.0


def test_missing_images_are_explained(monkeypatch):
    example = load("clean_fashion_mnist")

    def fail():
        raise OSError("no network")

    monkeypatch.setattr(example.keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(SystemExit, match="--keras-home"):
        example.load_images(example.parse([]))
    monkeypatch.setenv("KERAS_HOME", "elsewhere")
    with pytest.raises(ValueError, match="command line"):
        example.load_images(example.parse(["--keras-home", "folder"]))
