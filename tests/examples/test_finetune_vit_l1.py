"""Fine-tuning with learned L1 strengths, in quick mode, on data at hand."""

import numpy as np
import pytest
from test_examples import load

pytest.importorskip("keras_hub", reason="the example needs keras-hub")


@pytest.fixture(scope="module")
def example():
    return load("finetune_vit_l1")


# Keras's, of a file whose optimizer has not been used in the other model.
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.slow
def test_quick_run(example, tmp_path, capsys):
    (run,) = example.main(
        ["--quick", "--data", "digits", "--output", str(tmp_path)]
        + ["--estimators", "hpo_sgld"]
    )
    assert list(run.rows) == [
        example.NONE,
        example.NONE_ON_ALL,
        example.BEST,
        example.BEST_ON_ALL,
        "HPO-SGLD",
        example.RETRAINED,
    ]
    for name, row in run.rows.items():
        assert np.all(np.isfinite(row)) and 0 < row[0] <= 1, name
        # A head of zeros gives every class the same: log 5.
        assert row[1] < np.log(5), name
    assert len(run.courses["hpo_sgld"]) == run.options.steps // example.CHAIN

    # One strength for each entry of each kernel. Two steps of Adam move one by
    # exp(0.4) at most, and by less where its hypergradient is below epsilon.
    classifier, learner, _ = run.start(example.START, "parameter")
    kernels = [w for w in classifier.weights if w.path.endswith("kernel")]
    strengths = run.strengths["hpo_sgld"]
    assert len(strengths) == sum(int(np.prod(k.shape)) for k in kernels)
    moved = np.abs(np.log(strengths / example.START))
    assert np.mean(moved > 0.01) > 0.1 and moved.max() < 0.45
    assert 0 < strengths.min() and strengths.max() < example.MAX_STRENGTH

    # All start at the pretrained weights, which is where the penalty is zero.
    for weight, value in zip(
        classifier.weights, run.first_weights, strict=True
    ):
        np.testing.assert_array_equal(weight, value)
    learner.compile(example.hs.SGLD(0.01), loss=example.LOSS)
    assert float(sum(classifier.losses)) == 0.0

    printed = capsys.readouterr().out
    picture = tmp_path / "finetune_vit_l1.png"
    assert picture.stat().st_size > 10_000
    assert str(picture) in printed
    table = (tmp_path / "finetune_vit_l1.txt").read_text()
    assert len(table.splitlines()) == 2 + len(run.rows)
    assert table in printed

    # The pretrained weights are read the second time.
    options = example.parse(
        ["--quick", "--data", "digits", "--output", str(tmp_path)]
    )
    pool, _ = example.load_images(options)
    again = example.pretrained(options, pool, print)
    assert "are read from" in capsys.readouterr().out
    for one, two in zip(run.first_weights, again, strict=True):
        np.testing.assert_array_equal(one, two)


def test_levels_share_no_images_and_halves_no_classes(example):
    options = example.parse(["--quick", "--data", "digits"])
    pool, test = example.load_images(options)
    assert set(example.half(pool, 0)[1]) == set(range(5))
    x, y = example.half(pool, 1)
    assert set(y) == set(range(5))
    chosen = pool[1] >= 5
    np.testing.assert_array_equal(x, pool[0][chosen])
    np.testing.assert_array_equal(y, pool[1][chosen] - 5)
    run = example.Experiment(options, None, pool, test, 0, print)
    parts = [set(map(bytes, part[0])) for part in (run.inner, run.outer)]
    assert len(parts[0]) == len(parts[1]) == 50
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(map(bytes, run.everything[0]))
    assert not set(map(bytes, run.test[0])) & (parts[0] | parts[1])


def test_missing_images_are_explained(example, monkeypatch):
    def fail():
        raise OSError("no network")

    monkeypatch.setattr(example.keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(SystemExit, match="--keras-home"):
        example.load_images(example.parse([]))
