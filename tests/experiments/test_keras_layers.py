"""The sweep over Keras's layers: its table, and its rows."""

import json
import pathlib
import sys

import keras
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "keras_layers"))

import layer_measures  # noqa: E402
import layer_models  # noqa: E402
import layer_rows  # noqa: E402
import sweep  # noqa: E402
from keras_parts import Part  # noqa: E402
from keras_parts import VECTOR  # noqa: E402

PAGE = ROOT / "docs" / "keras_layers.md"
FOUND = layer_models.discovered()
ROWS = [name for name, reason in FOUND.items() if reason is None]
# State that training moves, random numbers, and integers for inputs.
QUICK = ["BatchNormalization", "Dropout", "Embedding"]
# The sweep measures all of them. Here one of each family is enough: of what
# differs in the number of dimensions, and of images that are changed at random.
RANDOM = ["RandomContrast", "RandomErasing", "RandomFlip", "RandomRotation"]
MEASURED = [
    name
    for name in ROWS
    if not ("1D" in name or "3D" in name)
    and (name in RANDOM or not name.startswith("Random"))
]


def test_every_layer_of_keras_has_a_row_or_a_reason():
    assert not [n for n, reason in FOUND.items() if reason == sweep.UNKNOWN]
    assert len(ROWS) > 110
    assert {"LSTM", "Conv2D", "MultiHeadAttention"} <= set(ROWS)


def test_layer_that_the_table_lacks_is_named(monkeypatch):
    monkeypatch.setattr(
        keras.layers, "Novel", type("Novel", (keras.Layer,), {}), raising=False
    )
    assert layer_models.discovered()["Novel"] == sweep.UNKNOWN


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in MEASURED
    ],
)
@pytest.mark.filterwarnings("ignore:Layer 'flatten")  # of `Masking`
def test_layer(name):
    row = layer_measures.measure(name)
    assert row.faults() == []
    assert row.refused or None not in (row.weights, row.one_step, row.export)


@keras.ops.custom_gradient
def squared(x):
    """The square, whose second derivative is cut and not 2."""
    held = keras.ops.stop_gradient(x)
    return x**2, lambda upstream: 2.0 * held * upstream


@keras.saving.register_keras_serializable("test_keras_layers")
class Cut(keras.layers.Layer):
    def call(self, x):
        return squared(x)


def test_a_derivative_that_is_cut_is_found(monkeypatch):
    monkeypatch.setitem(layer_models.LAYERS, "Cut", Part(Cut, (VECTOR,)))
    row = layer_measures.measure("Cut")
    (fault,) = row.faults()
    assert fault.startswith("three_steps=")
    assert row.weights < 1e-12 and row.resumed and row.one_step < 1e-6


def test_whatever_is_off_is_said():
    row = layer_rows.Row(
        "Dense", "float64", 1e-9, float("nan"), 1e-5, False, 1e-9
    )
    faults = row.faults()
    assert [fault.split("=")[0] for fault in faults[:4]] == [
        *("weights", "one_step", "three_steps", "export")
    ]
    assert faults[4:] == ["not resumed bit for bit"]
    refused = layer_rows.Row("Dense", "float64", refused="No. Received: 1")
    assert refused.faults() == ["refused: No"]


def test_page_is_made_of_the_rows_that_there_are(tmp_path, capsys):
    good = layer_rows.Row("ELU", "float64", 0.0, 2e-9, 3e-8, True, 0.0)
    bad = layer_rows.Row("Dense", "float64", 0.5, 2e-9, 3e-8, True, 0.0)
    results, page = tmp_path / "rows", tmp_path / "page.md"

    def written(*rows):
        page.write_text("# Head\n\n" + sweep.MARK + "what stood there\n")
        results.write_text(
            "".join(json.dumps(sweep.kept(r)) + "\n" for r in rows)
        )
        names = [row.name for row in rows]
        status = sweep.main(
            [*names, "--results", str(results), "--page", str(page)]
        )
        return status, page.read_text()

    status, text = written(good)
    assert status == 0
    assert text.startswith("# Head\n\n" + sweep.MARK)
    assert "what stood there" not in text
    assert "| `ELU` | float64 | 0 | 2e-09 | 3e-08 | equal | 0 |  |" in text
    status, text = written(good, bad)
    assert status == 1
    assert text.index("`Dense`") < text.index("`ELU`")
    assert "**weights=0.5 above 1e-12**" in text
    assert capsys.readouterr().out.endswith("2 layers, off: ['Dense']\n")


def test_documented_table_is_complete_and_right():
    lines = PAGE.read_text().split(sweep.MARK)[1].splitlines()
    documented = [line.split("`")[1] for line in lines if "`" in line]
    assert set(ROWS) <= set(documented)
    assert "**" not in "".join(lines)
