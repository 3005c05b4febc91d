"""The experiments on wrong labels and frozen networks, on small data."""

import csv
import importlib
import pathlib
import sys

import keras
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture
def load(monkeypatch):
    # As for scripts that are run.
    monkeypatch.syspath_prepend(str(FOLDER / "real"))
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return importlib.import_module


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The hyperparameters were updated")
def test_all_rows_are_written_and_the_oracle_is_right(
    load, tmp_path, monkeypatch
):
    methods = load("label_methods")
    monkeypatch.setattr(load("label_run"), "RATE", 0.1)  # of 20 steps
    path = tmp_path / "rows.csv"
    arguments = ["--quick", "--tasks", "trec", "--seeds", "3"]
    rows = load("label_errors").main([*arguments, "--out", str(path)])
    with path.open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows) == len(methods.methods())
    by_name = {row["method"]: row for row in rows}
    assert by_name["ours"]["auc"] > 0.85
    assert by_name["oracle: right labels and outer data"]["auc"] == 1.0
    oracle = by_name["oracle: true labels and outer data"]
    assert oracle["accuracy"] > 0.85


def test_a_part_is_standardized_by_its_training_inputs(load):
    part = load("label_sets").drawn()
    np.testing.assert_allclose(part.x.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(part.x.std(0), 1.0, atol=1e-4)
    assert abs(part.test_x.mean(0)).max() > 0.01
    assert part.num_classes == 3


def test_converted_arrays_fill_the_network_of_images(load):
    # Arrays in PyTorch's order, as the file of the wheel holds them.
    module = load("efficientnet_lite0")
    rng, state = np.random.default_rng(0), {}

    def kernel(name, *shape):
        state[f"{name}.weight"] = rng.normal(size=shape)

    def norm(name, size):
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = rng.random(size)

    kernel("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    number, inputs = 0, 32
    for repeats, size, _, expansion, channels in module.BLOCKS:
        for _ in range(repeats):
            name, wide = f"_blocks.{number}", expansion * inputs
            if number:
                kernel(f"{name}._expand_conv", wide, inputs, 1, 1)
                norm(f"{name}._bn0", wide)
            kernel(f"{name}._depthwise_conv", wide, 1, size, size)
            norm(f"{name}._bn1", wide)
            kernel(f"{name}._project_conv", channels, wide, 1, 1)
            norm(f"{name}._bn2", channels)
            number, inputs = number + 1, channels
    kernel("_conv_head", 1280, 320, 1, 1)
    norm("_bn1", 1280)
    state |= {"_fc.weight": rng.random((1000, 1280)), "_fc.bias": np.ones(1000)}
    arrays = module.converted(state)
    network = module.network(32, top=True)
    assert len(arrays) == len(network.weights)
    for weight in network.weights:
        layer = weight.path.split("/")[-2]
        assert arrays[f"{layer}/{weight.name}"].shape == weight.shape
    # Each kernel once more through Keras: a change of the order would show.
    stem = network.get_layer("stem")
    stem.set_weights([arrays["stem/kernel"]])
    patch = rng.normal(size=(1, 3, 3, 3)).astype("float32")
    there = np.sum(patch[0].transpose(2, 0, 1) * state["_conv_stem.weight"][5])
    valid = keras.ops.conv(patch, stem.kernel, padding="valid")
    np.testing.assert_allclose(valid[0, 0, 0, 5], there, rtol=1e-4)
