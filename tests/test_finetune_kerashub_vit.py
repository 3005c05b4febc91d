"""The example that fine-tunes a vision transformer of KerasHub."""

import keras
import numpy as np
import pytest
from test_examples import load

pytest.importorskip("keras_hub", reason="the example needs keras-hub")


@pytest.mark.slow
def test_quick_mode_tunes_and_exports(tmp_path, capsys):
    example = load("finetune_kerashub_vit")
    (rows,), learner, difference = example.main(
        ["--quick", "--output", str(tmp_path)]
    )
    before, plain, _, learned = (accuracy for accuracy, *_ in rows.values())
    assert learned > before + 0.1 and plain > before + 0.1
    kernels = [
        weight
        for weight in learner.trainable_variables
        if weight.name.endswith("kernel")
    ]
    assert [tuple(v.shape) for v in learner.hyperparameters] == [
        tuple(weight.shape) for weight in kernels
    ]
    # Those of queries, keys and values among them, whose kernels have 3 axes.
    assert {len(weight.shape) for weight in kernels} >= {2, 3, 4}
    assert all(np.ptp(v) > 0 for v in learner.hyperparameters)
    assert difference < 1e-5
    loaded = keras.models.load_model(tmp_path / example.FILE_NAME)
    assert loaded.count_params() == learner.model.count_params()
    assert "HPO-SGLD, L1 per parameter" in capsys.readouterr().out


def test_preset_that_cannot_be_had_is_named(tmp_path):
    example = load("finetune_kerashub_vit")
    with pytest.raises(SystemExit, match="no_such_preset"):
        example.main(
            ["--quick", "--preset", "no_such_preset", "--output", str(tmp_path)]
        )
