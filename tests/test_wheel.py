"""The built wheel, installed elsewhere and imported from another directory."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

pytestmark = pytest.mark.slow


ROOT = pathlib.Path(__file__).parent.parent


def test_wheel_installs_and_imports_from_elsewhere(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", str(tmp_path), str(ROOT)],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "keras_hposgld/py.typed" in names
    assert not any(name.startswith(("tests/", "examples/")) for name in names)
    target = tmp_path / "installed"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(target), str(wheel)],
        check=True,
    )
    script = (
        "import keras_hposgld as hs, pathlib; "
        f"assert pathlib.Path(hs.__file__).is_relative_to({str(target)!r}); "
        "assert all(hasattr(hs, name) for name in hs.__all__); "
        "print(hs.__version__)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
    )
    assert result.stdout.strip() in wheel.name


def test_another_backend_is_refused_with_the_reason():
    script = (
        "import keras; keras.backend.backend = lambda: 'jax'; "
        "import keras_hposgld"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode != 0
    assert "Received: 'jax'" in result.stderr
    assert "KERAS_BACKEND=tensorflow" in result.stderr
