"""Every Python block of the README, the docs and the docstrings runs."""

import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import subprocess
import sys
import textwrap

import pytest

import keras_hposgld

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


def blocks(text):
    return [textwrap.dedent(match[2]) for match in BLOCK.finditer(text)]


def documented_objects():
    """Public classes, functions and methods of all modules, each once."""
    seen = {}
    for info in pkgutil.walk_packages(
        keras_hposgld.__path__, prefix="keras_hposgld."
    ):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if getattr(value, "__module__", None) != info.name:
                continue
            if name.startswith("_") or not callable(value):
                continue
            seen[f"{info.name}.{name}"] = value
    return seen


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
# On these pages each block goes on from the one before.
SESSIONS = {"getting_started.md", "own_hyperparameter.md"}
SLOW_PAGES = {
    "adjoint_sgld.md",
    "deployment.md",
    "getting_started.md",
    "samplers.md",
}
PAGE_BLOCKS = [
    pytest.param(
        block,
        id=f"{page.name}-{number}",
        marks=[pytest.mark.slow] if page.name in SLOW_PAGES else [],
    )
    for page in PAGES
    for number, block in enumerate(
        ["".join(blocks(page.read_text()))]
        if page.name in SESSIONS
        else blocks(page.read_text())
    )
]
DOCSTRING_BLOCKS = [
    pytest.param(block, id=f"{path}-{number}")
    for path, value in documented_objects().items()
    for number, block in enumerate(blocks(inspect.getdoc(value) or ""))
]


@pytest.mark.parametrize("block", PAGE_BLOCKS + DOCSTRING_BLOCKS)
def test_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "Strategy()" not in block:
        code = compile(block, "<documentation>", "exec")
        exec(code, {"__name__": "__main__"})
        return
    # TensorFlow mixes up the collectives of two strategies in one process.
    result = subprocess.run(
        [sys.executable, "-c", block],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("name", keras_hposgld.__all__)
def test_public_names_have_a_docstring_with_an_example(name):
    value = getattr(keras_hposgld, name)
    assert inspect.getdoc(value)
    if inspect.isclass(value) and name != "Estimate":
        assert blocks(inspect.getdoc(value))
    for member in vars(value).values() if inspect.ismodule(value) else ():
        if inspect.isclass(member) and member.__module__.startswith(
            "keras_hposgld"
        ):
            assert inspect.getdoc(member)


def test_links_between_pages_lead_somewhere():
    link = re.compile(r"\]\((?!https?:|#)([^)#]+)")
    for page in PAGES:
        for target in link.findall(page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
