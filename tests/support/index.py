"""Which tests are about a module or a row of a table: ``python tests/support/index.py [WORD ...]`` prints them.

Modules are found by what test files import, and by the public names that they use; a private module that no test names
is listed with the nearest modules above it that a test does name. Rows of tables (facts, refusals, compositions, wrong
answers) are found by their own ``test``, or by their name in the texts of tests.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any, Iterator, NamedTuple

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
PACKAGE = "torch_func_compat"
TABLES = ("_torch.facts", "_guards")


class Row(NamedTuple):
    """A row of a table of the package."""

    table: str
    name: str
    test: str


def sources() -> dict[str, Path]:
    """Modules of the package by dotted name, without the package's own."""
    folder = ROOT / "src" / PACKAGE
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def tests() -> dict[str, str]:
    """Texts of the test files by name."""
    paths = sorted(path for path in TESTS.rglob("test_*.py"))
    return {path.relative_to(TESTS).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def imported(tree: ast.AST, base: list[str]) -> Iterator[str]:
    """Dotted names within the package that a tree imports; `base` are the packages around a module of the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name[len(PACKAGE) + 1 :] for alias in node.names if alias.name.startswith(PACKAGE + "."))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = ".".join([*base[: len(base) - node.level + 1], *filter(None, [module])])
            elif module.split(".")[0] != PACKAGE:
                continue
            else:
                module = module[len(PACKAGE) + 1 :]
            yield module
            yield from (".".join(filter(None, [module, alias.name])) for alias in node.names)


def by_module() -> dict[str, list[str]]:
    """Test files by module, where they import it or use a public name that it defines."""
    package = importlib.import_module(PACKAGE)
    home = {}
    for name in package.__all__:
        module = getattr(getattr(package, name), "__module__", None) or ""
        if module.startswith(PACKAGE + "."):
            home[name] = module[len(PACKAGE) + 1 :]
    modules = sources()
    found: dict[str, set[str]] = {name: set() for name in modules}
    for file, text in tests().items():
        tree = ast.parse(text)
        names = set(imported(tree, []))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for name in [*(name for name in names if name in modules), *(home[name] for name in used if name in home)]:
            if name in found:
                found[name].add(file)
    return {name: sorted(files) for name, files in found.items()}


def importers() -> dict[str, set[str]]:
    """Who imports each module of the package."""
    modules, found = sources(), {}
    for name, path in modules.items():
        base = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
        for target in imported(ast.parse(path.read_text(encoding="utf-8")), [part for part in base if part]):
            if target in modules and target != name:
                found.setdefault(target, set()).add(name)
    return found


def nearest(name: str, files: dict[str, list[str]], above: dict[str, set[str]]) -> list[str]:
    """The nearest modules above one that tests name."""
    seen, level = {name}, {name}
    while level:
        level = {upper for lower in level for upper in above.get(lower, ())} - seen
        seen |= level
        found = sorted(upper for upper in level if files.get(upper))
        if found:
            return found
    return []


def rows() -> Iterator[Row]:
    """Rows of the tables: dictionaries and tuples of named tuples in the modules of `TABLES`."""
    importlib.import_module(PACKAGE)
    names = []
    for table in TABLES:
        module = importlib.import_module(f"{PACKAGE}.{table}")
        names.append(module.__name__)
        names += [found.name for found in pkgutil.walk_packages(getattr(module, "__path__", []), module.__name__ + ".")]
    known = set()
    for name in names:
        try:
            module = importlib.import_module(name)
        except (ImportError, AttributeError):  # made for another torch
            continue
        for title, table in vars(module).items():
            if isinstance(table, (tuple, dict)) and not hasattr(table, "_fields") and id(table) not in known:
                pairs: Any = table.items() if isinstance(table, dict) else ((None, row) for row in table)
                pairs = [(key, row) for key, row in pairs if hasattr(row, "_fields")]
                known.add(id(table))
                for key, row in pairs:
                    label = key if isinstance(key, str) else row[0] if isinstance(row[0], str) else " ".join(row[0])
                    yield Row(f"{name[len(PACKAGE) + 1 :]}.{title}", label, str(getattr(row, "test", "") or ""))


def about(row: Row, texts: dict[str, str]) -> list[str]:
    """The tests of a row: its own, or files that run over the table or in which a word of its name stands."""
    if row.test:
        return [row.test]
    words = [row.table.rpartition(".")[2], *(word.rpartition(".")[2] for word in row.name.split())]
    pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in words))
    return [file for file, text in texts.items() if pattern.search(text)]


def lines() -> Iterator[str]:
    """The whole index."""
    files, above, texts = by_module(), importers(), tests()
    for name in files:
        if files[name]:
            yield f"{name or PACKAGE}: {', '.join(files[name])}"
        else:
            upper = nearest(name, files, above)
            yield f"{name}: by way of {', '.join(upper)}" if upper else f"{name}: no test names it"
    for row in rows():
        yield f"{row.table}: {row.name}: {', '.join(about(row, texts)) or 'no test names it'}"


def main(words: list[str]) -> None:
    for line in lines():
        if all(word in line for word in words):
            print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
