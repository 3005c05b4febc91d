"""The examples of meta-learning in their quick mode, on data at hand."""

import numpy as np
import pytest
from test_examples import load

pytestmark = pytest.mark.slow


def test_few_shot(tmp_path, capsys):
    example = load("few_shot_omniglot")
    results = example.main(
        ["--quick", "--data", "digits", "--output", str(tmp_path)]
    )
    assert set(results) == {(method, 1) for method in example.methods()}
    for points, accuracies in results.values():
        assert len(accuracies) == 20
        assert np.all((accuracies >= 0) & (accuracies <= 1))
        seconds = [point[0] for point in points]
        assert len(points) > 1 and seconds == sorted(seconds)
    printed = capsys.readouterr().out
    table = (tmp_path / "few_shot_omniglot.txt").read_text()
    assert table in printed and "iMAML" in table
    assert (tmp_path / "few_shot_omniglot.png").stat().st_size > 10_000


def test_few_shot_data(tmp_path):
    example = load("few_shot_omniglot")
    rng = np.random.default_rng(0)
    arrays = {
        "background_images": rng.integers(0, 256, (3, 4, 6, 6), np.uint8),
        "evaluation_images": rng.integers(0, 256, (2, 4, 6, 6), np.uint8),
    }
    np.savez(tmp_path / "characters.npz", **arrays)
    train, test = example.load_characters(
        example.parse(["--omniglot", str(tmp_path / "characters.npz")])
    )
    np.testing.assert_array_equal(test, arrays["evaluation_images"])
    turned = example.with_rotations(train)
    assert turned.shape == (12, 4, 6, 6)
    np.testing.assert_array_equal(turned[:3], train)
    np.testing.assert_array_equal(turned[4][2], np.rot90(train[1][2]))


def test_omniglot_as_its_authors_keep_it(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image", reason="reads PNG files")
    import zipfile

    example = load("few_shot_omniglot")
    drawn = np.full((105, 105), 255, np.uint8)
    drawn[:, :52] = 0  # ink is black there
    Image.fromarray(drawn).save(tmp_path / "image.png")
    for name in ("images_background", "images_evaluation"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            for character in ("b", "a"):
                for number in range(3):
                    archive.write(
                        tmp_path / "image.png",
                        f"{name}/Latin/{character}/{number}.png",
                    )
    monkeypatch.setattr(
        example.keras.utils,
        "get_file",
        lambda name, url: str(tmp_path / name),
    )
    train, test = example.load_characters(example.parse([]))
    assert train.shape == test.shape == (2, 3, 28, 28)
    assert train[0, 0, :, :12].min() == 255 and train[0, 0, :, 16:].max() == 0

    def fail(name, url):
        raise OSError("no network")

    monkeypatch.setattr(example.keras.utils, "get_file", fail)
    with pytest.raises(SystemExit, match="--omniglot"):
        example.load_characters(example.parse([]))


def test_learn_image_start(tmp_path, capsys):
    pytest.importorskip("skimage", reason="the photographs are in there")
    example = load("learn_image_start")
    ((crops, results),) = example.main(["--quick", "--output", str(tmp_path)])
    assert set(results) == {
        example.STANDARD,
        example.ADAM,
        example.JOINT,
        *(label for label, _ in example.ESTIMATORS.values()),
    }
    for method, (scores, _, drawings) in results.items():
        for score, steps in zip(scores, example.STEPS, strict=True):
            error = drawings[steps].reshape(crops.shape) - crops
            decibels = -10 * np.log10(np.mean(error**2, axis=(1, 2)))
            assert score == pytest.approx(decibels.mean(), rel=1e-5), method
        assert len(set(np.round(scores, 3))) > 1, method  # it moves
    table = (tmp_path / "learn_image_start.txt").read_text()
    assert table in capsys.readouterr().out
    assert (tmp_path / "learn_image_start.png").stat().st_size > 10_000
