"""The KerasHub example in its quick mode."""

import importlib.util
import pathlib

import keras
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the example needs scikit-learn")
pytest.importorskip("keras_hub", reason="the example needs keras-hub")

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    path = EXAMPLES / "finetune_kerashub_vit.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_quick_run(example, tmp_path, capsys, rng):
    (rows,), learner, difference = example.main(
        ["--quick", "--output", str(tmp_path)]
    )
    before, after = (
        rows[name][0]
        for name in ("before fine-tuning", "HPO-SGLD, L1 per parameter")
    )
    # A head of zeros guesses one of five classes. Quick runs reached 0.6; the
    # standard error of 300 test images is 0.03.
    assert before < 0.3
    assert after > before + 0.2

    # One strength for each entry of each kernel, the rank-3 ones of the
    # attention among them; none for class token, embedding, biases and norms.
    exported = keras.models.load_model(
        tmp_path / example.FILE_NAME, compile=False
    )
    kernels = [w for w in exported.weights if w.path.endswith("kernel")]
    assert {len(kernel.shape) for kernel in kernels} == {2, 3, 4}
    strengths = learner.hyperparameter_values()
    assert sorted(value.shape for value in strengths.values()) == sorted(
        tuple(kernel.shape) for kernel in kernels
    )
    moved = [v for v in strengths.values() if np.any(v != v.flat[0])]
    assert len(moved) == len(strengths)

    # Saving keeps every bit of the weights, and both run the same operations.
    x = rng.uniform(-1, 1, (8, *exported.backbone.image_shape))
    np.testing.assert_allclose(
        exported.predict(x, verbose=0), learner.predict(x, verbose=0), rtol=1e-5
    )
    assert difference < 1e-5

    printed = capsys.readouterr().out
    for text in (
        "no penalty",
        "trained on all",
        f"{example.count(exported.weights):,} weights",
        f"{example.count(kernels):,} hyperparameters",
    ):
        assert text in printed


def test_halves_do_not_share_images(example):
    x = np.arange(1000)
    y = x % 10
    pretraining, *parts = example.split(x, y, (50, 60, 70), seed=1)
    assert np.all(pretraining[0] % 10 == pretraining[1])
    assert set(pretraining[1]) == set(range(5))
    for (images, labels), size in zip(parts, (50, 60, 70), strict=True):
        assert len(images) == size
        np.testing.assert_array_equal(images % 10 - 5, labels)
    taken = np.concatenate([images for images, _ in parts])
    assert len(set(taken)) == 180
    with pytest.raises(ValueError, match="at most 500"):
        example.split(x, y, (200, 200, 101), seed=1)


def test_preset_that_cannot_be_loaded_is_an_error(example, tmp_path):
    missing = tmp_path / "no_such_preset"
    with pytest.raises(RuntimeError, match="could not be loaded") as error:
        example.load_preset(str(missing))
    assert str(missing) in str(error.value)
    assert "vit_base_patch16_224_imagenet" in str(error.value)


def test_preset_comes_with_its_weights_under_a_head_of_zeros(
    example, tmp_path, rng
):
    classifier = example.make_classifier("tiny")
    classifier.save_to_preset(tmp_path / "preset")
    start = example.with_new_head(example.load_preset(str(tmp_path / "preset")))
    pairs = zip(
        classifier.backbone.weights, start.backbone.weights, strict=True
    )
    for saved, loaded in pairs:
        np.testing.assert_array_equal(saved, loaded)
    x = rng.uniform(-1, 1, (2, *start.backbone.image_shape))
    assert not np.any(start.predict(x, verbose=0))
