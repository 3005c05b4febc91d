"""The example of learned invariance in its quick mode, on data at hand."""

import numpy as np
import pytest
from test_examples import load

pytestmark = pytest.mark.slow


def test_learn_invariance(tmp_path, capsys):
    example = load("learn_invariance_fashion_mnist")
    (run,) = example.main(
        ["--quick", "--data", "digits", "--output", str(tmp_path)]
        + ["--estimators", "hpo_sgld", "rmd"]
    )
    for variant in example.VARIANTS:
        rows = run.rows[variant]
        assert set(rows) == {
            *(f"range {degrees:.0f}" for degrees in run.options.grid),
            example.BEST,
            example.BEST_ON_ALL,
            example.NONE_ON_ALL,
            "HPO-SGLD",
            "RMD",
            example.AVERAGED,
            example.RETRAINED,
        }
        for name, row in rows.items():
            assert np.all(np.isfinite(row)) and 0 <= row[1] <= 1, name
        # The range of the row is the one at the end of the course: a value
        # for the start, and one for each chain.
        for estimator, name in (("hpo_sgld", "HPO-SGLD"), ("rmd", "RMD")):
            course = run.courses[variant][estimator]
            assert len(course) == 1 + run.options.steps // example.CHAIN
            assert course[0] == example.START
            assert rows[name][0] == course[-1] != example.START
        # Averaging and retraining use that range.
        for name in (example.AVERAGED, example.RETRAINED):
            assert rows[name][0] == rows["HPO-SGLD"][0], name
        assert rows[example.AVERAGED][2] != rows["HPO-SGLD"][2]

    printed = capsys.readouterr().out
    picture = tmp_path / "learn_invariance.png"
    assert picture.stat().st_size > 10_000
    assert str(picture) in printed
    table = (tmp_path / "learn_invariance.txt").read_text()
    assert table in printed
    # Two tables, a line of title, two of head, one empty.
    assert len(table.split("\n")) == sum(
        4 + len(run.rows[variant]) for variant in example.VARIANTS
    )


def test_rows_differ_in_nothing_but_the_augmentation():
    example = load("learn_invariance_fashion_mnist")
    options = example.parse(["--quick", "--data", "digits"])
    pool, test = example.load_images(options)
    run = example.Experiment(options, pool, test, 0, print)
    inner, upright = run.inner[0], run.outer["B"][0]
    assert not set(map(bytes, inner)) & set(map(bytes, upright))
    assert not set(map(bytes, pool[0])) & set(map(bytes, test[0]))
    # Outer and test images are turned in variant A; labels stay.
    for data in (run.outer, run.test):
        np.testing.assert_array_equal(data["A"][1], data["B"][1])
        changed = np.abs(data["A"][0] - data["B"][0]).max(axis=(1, 2, 3))
        assert np.mean(changed > 0.05) > 0.9
    # A range of next to nothing is no augmentation. (Not on black: there the
    # first activations are exactly zero, where a ReLU has no derivative.)
    bright = inner + 0.1, run.inner[1]
    weights = [
        run.train(bright, degrees)[0].get_weights() for degrees in (0.0, 1e-4)
    ]
    learned = [w for w in weights[1] if w.ndim]
    for one, two in zip(weights[0], learned, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-3)


def test_images_are_turned_by_at_most_a_right_angle():
    # The angle of a bar's end, seen from the centre.
    example = load("learn_invariance_fashion_mnist")
    bar = np.zeros((200, 21, 21, 1), "float32")
    bar[:, :11, 10] = 1.0  # upward
    turned, _ = example.rotated((bar, None), seed=0)
    rows, columns = np.mgrid[:21, :21] - 10
    mass = turned[..., 0] / turned.sum(axis=(1, 2, 3))[:, None, None]
    up = (mass * -rows).sum(axis=(1, 2))
    right = (mass * columns).sum(axis=(1, 2))
    angles = np.rad2deg(np.arctan2(right, up))
    assert 80 < angles.max() < 91 and -91 < angles.min() < -80


def test_missing_images_are_explained(monkeypatch):
    example = load("learn_invariance_fashion_mnist")

    def fail():
        raise OSError("no network")

    monkeypatch.setattr(example.keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(SystemExit, match="--keras-home"):
        example.load_images(example.parse([]))
