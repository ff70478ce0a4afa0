"""The documentation hangs together: links, table of contents, API, drawings."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

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


SITE = "https://torch-func-compat.readthedocs.io/en/latest/"
REPOSITORY = "https://github.com/torch-func-compat/torch-func-compat"


def test_links_of_the_readme_are_absolute_and_lead_somewhere():
    """PyPI shows README.md away from the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert [target for target in targets if not target.startswith("https://")] == []
    own = [target for target in targets if target.startswith((SITE, REPOSITORY))]
    assert len(own) > 10
    for target in own:
        if target.startswith(SITE):
            assert (DOCS / target[len(SITE) :].replace(".html", ".md")).exists(), target
        elif "/blob/main/" in target:
            assert (ROOT / target.split("/blob/main/")[1]).exists(), target


def test_the_project_has_one_address():
    pyproject, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("pyproject.toml", "CITATION.cff"))
    assert f'Documentation = "{SITE}"' in pyproject and f'Source = "{REPOSITORY}"' in pyproject
    assert f"repository-code: {REPOSITORY}\n" in citation and f"url: {SITE.split('/en/')[0]}\n" in citation
    assert f"\nversion: {tfc.__version__}\n" in citation


def test_badges_are_true():
    readme, matrix = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "matrix.toml"))
    releases = re.findall(r'^    \{ name = "torch-(\d+\.\d+)', matrix, re.MULTILINE)
    assert f"PyTorch {releases[0]} to {releases[-1]}]" in readme
    assert f"/PyTorch-{releases[0]}%20to%20{releases[-1]}-" in readme
    assert f"for every PyTorch from {releases[0]} to {releases[-1]}," in readme
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (python,) = re.findall(r'^requires-python = ">=(.*)"$', pyproject, re.MULTILINE)
    assert f"Python-{python}%20and%20newer" in readme
    assert 'license = "Apache-2.0"' in pyproject and "strict = true" in pyproject


@pytest.mark.skipif(not (ROOT / ".github").is_dir(), reason="the sdist has no workflows")
def test_actions_are_pinned():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    uses = [line for path in workflows for line in re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))]
    assert len(uses) > 20
    for line in uses:
        assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", line), line


def test_readme_example_takes_any_chain():
    """Bonds that are all broken, no bond, and atoms on top of one another."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    namespace = {}
    exec(block.split("x = torch.rand")[0], namespace)
    energy = namespace["energy"]
    far = 10 * torch.arange(12.0).reshape(4, 3)
    for x in (far, far[:1], torch.zeros(4, 3), far.double(), far / 100):
        assert tfc.grad(energy)(x).shape == x.shape
        second = tfc.hessian(energy, chunk_size=6)(x)
        assert second.shape == (*x.shape, *x.shape) and bool(torch.isfinite(second).all())
    with tfc.use_fallback("silent"):
        assert not tfc.vmap(tfc.hessian(energy))(torch.stack([far, 2 * far])).any()


def test_every_page_is_in_a_table_of_contents():
    entries = [
        line.strip()
        for page in PAGES
        for block in re.findall(
            r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        for line in block.splitlines()
        if line.strip() and not line.startswith(":")
    ]
    assert sorted(entries) == sorted(page.stem for page in PAGES if page.stem != "index")


def listed():
    """Module -> the names that api.md makes a page for."""
    found, module = {}, ""
    for line in (DOCS / "api.md").read_text(encoding="utf-8").splitlines():
        if line.startswith(".. currentmodule:: "):
            module = line.split(":: ")[1]
        elif re.match(r"^   \w+$", line):
            found.setdefault(module, []).append(line.strip())
    return found


def test_every_public_name_has_a_page():
    names = listed()
    data = {"__version__", "__api_version__", "functional"}
    assert sorted(names["torch_func_compat"]) == sorted({*tfc.__all__} - data)
    for module, found in names.items():
        public = importlib.import_module(module)
        if module == "torch_func_compat.tad_mctc":  # the others are the same objects under the names of tad_mctc
            own = [
                name for name in public.__all__ if getattr(getattr(public, name), "__module__", "").startswith(module)
            ]
            assert sorted(found) == sorted({*own} - {"is_vmapped"})
        elif module != "torch_func_compat":
            assert sorted(found) == sorted(public.__all__), module


@pytest.mark.parametrize(
    "words, page",
    [
        ("PINN", "cookbook-pinn"),
        ("Hessian batch", "cookbook-molecular-hessian"),
        ("OOM", "cookbook-memory"),
        ("slow", "troubleshooting"),
    ],
)
def test_search_words_are_in_the_index(words, page):
    """An index entry is what Sphinx's search ranks first."""
    assert f"   ! {words}\n" in (DOCS / f"{page}.md").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info < (3, 9), reason="written for the Python that builds the documentation")
def test_pictures_and_pages_name_files_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import figures

    package = Path(tfc.__file__).parent
    for room, names in figures.ROOMS.items():
        assert [name for name in names if not (package / room / name).exists()] == [], room
    assert figures.rooms().startswith("<svg")
    private = [folder.name for folder in package.iterdir() if folder.is_dir() and folder.name.startswith("_")]
    apart = {"__pycache__", "_selfcheck", "_fields", "_forward_laplacian"}  # of one public function each
    assert sorted(set(private) - apart) == sorted(room for room in figures.ROOMS if room)


@pytest.mark.parametrize("page", [DOCS / "how-it-works.md", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_named_files_exist(page):
    """Files in backquotes are those of the package, of the tests or of the repository."""
    package = Path(tfc.__file__).parent
    text = page.read_text(encoding="utf-8")
    names = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|md))?|[a-z_]+\.py)`", text)
    assert len(names) > 5
    for name in names:
        inside = name[len("src/torch_func_compat/") :] if name.startswith("src/") else name  # without the sources, too
        assert any((base / inside).exists() for base in (package, ROOT)), name


@pytest.mark.skipif(sys.version_info < (3, 9), reason="written for the Python that builds the documentation")
def test_support_matrix_shows_every_release_and_operator(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import support_matrix

    seen = support_matrix.load()
    page, newest = support_matrix.page(), seen[max(seen)]
    (first, *_) = page.split("\n## ")[1:]
    assert [name for name in newest["torch operations"] if f"<code>{name}</code>" not in first] == []
    pictures = support_matrix.pictures()
    assert [name for name in pictures if f"(_generated/{name})" not in page] == []
    for kind in newest:
        for backend, file in (("torch.func", "default"), ("autograd", "autograd")):
            picture = pictures[f"support-{support_matrix.slug(kind)}-{file}.svg"]
            cells = [cells for cells in newest[kind].values() if backend in cells]
            assert picture.count(f", torch {max(seen)[0]}.{max(seen)[1]}: ") == len(cells)
            assert [r for r in seen if f">{r[0]}.{r[1]}</text>" not in picture] == []
            assert float(re.search(r'width="(\d+)"', picture)[1]) <= 760  # the width of the text at 1400 px


@pytest.mark.skipif(sys.version_info < (3, 9), reason="written for the Python that builds the documentation")
def test_every_recipe_has_its_picture(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import cookbook

    recipes = {page.stem.split("cookbook-")[1] for page in DOCS.glob("cookbook-*.md")}
    assert recipes == set(cookbook.PICTURES)
    for recipe in recipes:
        assert f"(_generated/cookbook-{recipe}.svg)" in (DOCS / f"cookbook-{recipe}.md").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.version_info < (3, 9), reason="written for the Python that builds the documentation")
def test_plots(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    from plots import Axis, Series, number, plot

    axis = Axis([0.0, 10.0], 100, 200, log=False, pad=0)
    assert (axis.at(0), axis.at(5), axis.at(10)) == (100, 150, 200)
    assert axis.ticks() == [0, 2, 4, 6, 8, 10]
    decades = Axis([1.0, 1000.0], 0, 3, log=True, pad=0)
    assert decades.ticks() == [1, 10, 100, 1000] and decades.at(100) == pytest.approx(2)
    assert (number(0.0), number(-0.5), number(2000.0)) == ("0", "-0.5", "2\u2009000")
    one = Series("a", [0, 1], [2, 3])
    picture = plot("title", "time in s", "length in m", [one, one._replace(name="b", dots=True)])
    assert picture.count("<circle") == 3 and all(words in picture for words in ("title", "time in s", "length in m"))
    with pytest.raises(AssertionError):
        plot("", "", "", [one] * 6)
