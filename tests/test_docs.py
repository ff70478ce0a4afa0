"""The documentation hangs together: links, table of contents, API, drawings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import torch_func_compat as tfc

pytestmark = pytest.mark.any_torch

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/README.md"))]
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def slugs(path):
    """Anchors of the headings of a page, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links(path):
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        if file.startswith("_generated/"):
            continue  # the build makes them, and finds out itself
        where = (path.parent / file).resolve() if file else path
        assert where.exists(), target
        if anchor:
            assert anchor in slugs(where), target


def test_every_page_is_in_the_table_of_contents():
    entries = [
        line.strip()
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```", (DOCS / "index.md").read_text(), re.MULTILINE | re.DOTALL
        )
        for line in block.splitlines()
        if line.strip() and not line.startswith(":")
    ]
    assert sorted(entries) == sorted(page.stem for page in PAGES if page.stem != "index")


def test_every_public_name_is_in_the_api():
    listed = re.findall(
        r"^\.\. (?:autofunction|autoclass|automodule|data):: (?:torch_func_compat\.autograd\.)?(\w+)$",
        (DOCS / "api.md").read_text(),
        re.MULTILINE,
    )
    assert sorted({*tfc.__all__} - {"__version__"} - {*listed}) == []
    assert len(listed) == len(set(listed))


@pytest.mark.skipif(sys.version_info < (3, 9), reason="written for the Python that builds the documentation")
def test_house_names_modules_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import figures

    package = Path(tfc.__file__).parent
    for modules in figures.HOUSE.values():
        for module in modules:
            assert (package / module).exists(), module
    assert figures.house().startswith("<svg")


@pytest.mark.skipif(sys.version_info < (3, 9), reason="written for the Python that builds the documentation")
def test_support_matrix_shows_what_was_seen(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import support_matrix

    seen = support_matrix.load()
    (kind, *_), newest = support_matrix.page().split("\n## ")[1:], seen[max(seen)]
    operators = newest["torch operations"]
    assert [name for name in operators if f"<code>{name}</code>" not in kind] == []
    for backend in ("torch.func", "autograd"):
        cells = [cells for kinds in newest.values() for cells in kinds.values() if backend in cells]
        assert support_matrix.picture((backend,)).count(f", torch {max(seen)[0]}.{max(seen)[1]}: ") == len(cells)
