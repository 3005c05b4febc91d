"""The example of the callback in its quick mode, on data at hand."""

import numpy as np
import pytest
from test_examples import load

pytestmark = pytest.mark.slow


def test_callback_fashion_mnist(tmp_path, capsys):
    example = load("callback_fashion_mnist")
    (run,) = example.main(
        ["--quick", "--data", "digits", "--output", str(tmp_path)]
    )
    finest = [name for name in example.LEARNED if "parameter" in name]
    assert len(finest) == 2
    assert set(run.rows) == {
        example.NONE,
        example.CONSTANT,
        example.CONSTANT_ON_ALL,
        *example.LEARNED,
        *map(example.retrained, finest),
    }
    for name, row in run.rows.items():
        assert np.all(np.isfinite(row)) and 0 < row[0] <= 1, name
        assert len(run.courses[name]) == 2, name

    # Strengths have moved in each weight (in two chains not all of them), and
    # none beyond its bound.
    sizes = {}
    for name, strengths in run.strengths.items():
        assert len(strengths) == 4, name
        values = np.concatenate([value.ravel() for value in strengths.values()])
        sizes[name] = len(values)
        for path, value in strengths.items():
            moved = np.abs(np.log(value / example.START))
            assert moved.max() > 0.01, (name, path)
        assert values.min() > 0 and values.max() < example.MAX_STRENGTH, name
    # 8 x 8 pixels become 2 x 2 with 32 channels.
    weights = 9 * 16 + 9 * 16 * 32 + 128 * 128 + 128 * 10
    per_tensor, per_input, *per_parameter = sizes.values()
    assert (per_tensor, per_input) == (4, 1 + 16 + 128 + 128)
    assert per_parameter == [weights, weights]

    printed = capsys.readouterr().out
    for name in ("one per tensor", "trained on all", "retrained on all"):
        assert name in printed
    picture = tmp_path / "callback_fashion_mnist.png"
    assert picture.stat().st_size > 10_000
    assert str(picture) in printed
    table = (tmp_path / "callback_fashion_mnist.txt").read_text()
    assert len(table.splitlines()) == 2 + len(run.rows)
    assert table in printed


def test_all_rows_start_and_train_alike():
    # A comparison of methods is one only if nothing else differs.
    example = load("callback_fashion_mnist")
    options = example.parse(["--quick", "--data", "digits"])
    options.epochs = 1
    pool, test = example.load_images(options)
    run = example.Experiment(options, pool, test, 0, print)
    assert not set(map(bytes, run.inner[0])) & set(map(bytes, run.outer[0]))
    assert not set(map(bytes, pool[0])) & set(map(bytes, test[0]))
    courses = []
    for strength in (None, 0.0):
        model = run.network(
            lambda s=strength: (
                s if s is None else example.keras.regularizers.L2(s)
            )
        )
        courses.append(run.train(model, run.inner)[0])
    np.testing.assert_allclose(courses[0], courses[1], rtol=1e-5)


def test_missing_images_are_explained(monkeypatch):
    example = load("callback_fashion_mnist")

    def fail():
        raise OSError("no network")

    monkeypatch.setattr(example.keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(SystemExit, match="--keras-home"):
        example.load_images(example.parse([]))
    monkeypatch.setenv("KERAS_HOME", "elsewhere")
    with pytest.raises(ValueError, match="command line"):
        example.load_images(example.parse(["--keras-home", "folder"]))
