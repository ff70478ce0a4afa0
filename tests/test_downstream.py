"""What finds the checkouts for `nox -s downstream -- --own-tests`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_torch
COMPARE = Path(__file__).parent / "downstream" / "compare.py"


@pytest.fixture(scope="module")
def compare():
    spec = importlib.util.spec_from_file_location("compare", COMPARE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("folder", "file", "text"),
    [
        ("tad_mctc-0.8.0", "setup.py", ""),
        ("tad-mctc-main", "setup.py", ""),
        ("fork", "pyproject.toml", '[project]\nname = "tad_mctc"\n'),
        ("fork", "setup.cfg", "[metadata]\nname = tad-mctc\n"),
    ],
)
def test_a_checkout_is_known_by_its_folder_or_its_metadata(compare, tmp_path, folder, file, text):
    sources = tmp_path / folder
    sources.mkdir()
    (sources / file).write_text(text, encoding="utf-8")
    (tmp_path / "other").mkdir()
    assert compare.checkout(tmp_path, "tad-mctc") == compare.checkout(sources, "tad-mctc") == sources.resolve()
    assert compare.checkout(tmp_path, "tad-dftd3") is compare.checkout(tmp_path / "other", "tad-mctc") is None


def test_a_folder_that_there_is_not(compare, tmp_path):
    with pytest.raises(SystemExit, match="there is no folder"):
        compare.checkout(tmp_path / "nowhere", "tad-mctc")
