"""Who may import whom, read from the sources; and that the folder works under any other name."""

from __future__ import annotations

import ast
import shutil
import sys

import pytest
from support.processes import PACKAGE, run_python

pytestmark = pytest.mark.any_torch

# From the ground up; a folder stands for all that lies in it, and "." for the package's own __init__. A module
# imports from its own entry and from the rows above it, never from below.
LAYERS = [
    ("_torch",),
    ("_guards", "_arguments"),
    ("_functions", "_transforms"),
    ("_backends",),
    ("_dispatch",),
    ("_forward_laplacian",),
    ("autograd.internals", "autograd.estimators"),
    ("autograd.estimated",),
    ("autograd.derivatives", "autograd.batched"),
    ("_fields",),
    ("autograd",),
    (".",),
    ("tad_mctc", "distributed", "sparse", "operators", "implicit", "testing", "_selfcheck"),
    ("__main__",),
]
TORCH_FUNC = {"_torch.facts", "_backends.torch_func", "_functions.forward_by_transpose"}
FUNCTORCH = {"_torch.facts", "_backends.functorch"}
PRIVATE = {
    *("_backends.native", "_backends.native_maps", "_backends.levels", "_backends.torch_func", "_backends.functorch"),
    *("_guards.by_operation", "_guards.adjoint_test", "_guards.recorder", "autograd.checks", "autograd.nested"),
    *("_functions.interpreters", "_functions.generated_vmap", "_functions.closed_over"),
}


def name_of(path):
    """Dotted and without the package's own; a package ends with a dot."""
    *folders, stem = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join([*folders, "" if stem == "__init__" else stem]) or "."


SOURCES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}


def entry(name):
    """The longest entry of LAYERS that stands for a module, and its height."""
    found = [
        (len(item), item, height)
        for height, row in enumerate(LAYERS)
        for item in row
        if name == item or (not item.endswith(".") and (name + ".").startswith(item + "."))
    ]
    assert found, f"{name} has no row in LAYERS: decide who may import it"
    return max(found)[1:]


def resolve(importer, node):
    """The modules of the package that a relative import names."""
    folders = [folder for folder in importer.split(".")[:-1] if folder]
    base = folders[: len(folders) - (node.level - 1)] + (node.module.split(".") if node.module else [])
    for alias in node.names:
        for candidate in (".".join([*base, alias.name]), ".".join([*base, alias.name]) + "."):
            if candidate in SOURCES:
                yield candidate
                break
        else:
            module = ".".join(base)
            yield module if module in SOURCES else module + "."


def imports(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]


def absolute(tree):
    """Dotted names of what is imported from elsewhere."""
    for node in imports(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def dotted(node):
    """``a.b.c`` of an attribute of a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def mentions(tree):
    """Dotted names and imports from elsewhere, and the strings that getattr() could be given."""
    yield from absolute(tree)
    own = {alias.name for node in imports(tree) if getattr(node, "level", 0) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            if dotted(node).split(".")[0] not in own:
                yield dotted(node)
        elif isinstance(node, ast.Call):
            for argument in node.args:
                value = getattr(argument, "value", None)
                if isinstance(argument, ast.Constant) and isinstance(value, str) and value.isidentifier():
                    yield f"getattr.{value}"


@pytest.mark.parametrize("name", SOURCES)
def test_imports_run_one_way(name):
    own, height = entry(name)
    for node in imports(TREES[name]):
        if isinstance(node, ast.ImportFrom) and node.level:
            for target in resolve(name, node):
                its, its_height = entry(target)
                assert its == own or its_height < height, f"{name or '.'} imports {target} in line {node.lineno}"


@pytest.mark.parametrize("name", SOURCES)
def test_imports_of_itself_are_relative(name):
    assert [imported for imported in absolute(TREES[name]) if imported.split(".")[0] == PACKAGE.name] == []


@pytest.mark.parametrize("name", SOURCES)
def test_dependencies(name):
    """At import no more than torch and packaging."""
    at_import = [node for node in TREES[name].body if isinstance(node, (ast.Import, ast.ImportFrom))]
    found = {imported.split(".")[0] for node in at_import for imported in absolute(ast.Module([node], []))}
    found -= {"torch", "packaging", *getattr(sys, "stdlib_module_names", found)}
    assert found <= ({"functorch"} if name == "_backends.functorch" else set())


MAKERS = {
    *("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm"),
    *("scalar_tensor", "sparse_coo_tensor", "sparse_csr_tensor", "tensor", "zeros"),
}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_tensors_are_made_on_a_device(name):
    """The default one is the user's, whose numbers the library may be unable to read or to mix with others."""
    without = [
        f"line {node.lineno}: {ast.dump(node.func)}"
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in MAKERS
        and getattr(node.func.value, "id", None) == "torch"
        and not any(keyword.arg in ("device", None) for keyword in node.keywords)
    ]
    assert not without


def test_natives_are_named_in_their_backends():
    for name, tree in TREES.items():
        found = set(mentions(tree))
        if name not in TORCH_FUNC:
            assert not [m for m in found if (m + ".").startswith("torch.func.")], name
        if name not in FUNCTORCH:
            assert not [m for m in found if m.split(".")[0] == "functorch"], name
        if name not in PRIVATE:
            assert not [m for m in found if "_functorch" in m.split(".")], name


def test_rules_find_what_they_forbid():
    tree = ast.parse("import functorch\nfrom torch.func import vmap\ntorch.func.grad\ngetattr(torch._C, '_functorch')")
    assert {"functorch", "torch.func.vmap", "torch.func.grad", "getattr._functorch"} <= set(mentions(tree))
    upward = ast.parse("from .._dispatch import choice\nfrom ..autograd.internals import vmap\nfrom . import load").body
    assert [list(resolve("_backends.torch_func", node)) for node in upward] == [
        ["_dispatch.choice"],
        ["autograd.internals"],
        ["_backends."],
    ]
    assert entry("_backends.autograd.batched_vjp")[0] == "_backends"
    assert entry("autograd.function")[0] == "autograd"


VENDORED = """
import sys, torch
import somepkg._vendor.tfc as a, otherpkg.tfc as b
from somepkg._vendor.tfc.__main__ import PACKAGE, _environment

assert "torch_func_compat" not in sys.modules
assert a is not b and a.grad is not b.grad
# the one by its own environment variable, the other by what there is
assert a.get_backend() == "autograd"
assert b.get_backend() == b.available_backends()[0]
b.set_backend("autograd")
a.set_backend(None)
with a.use_backend(a.available_backends()[0]):
    assert a.get_backend() == a.available_backends()[0] and b.get_backend() == "autograd"
b.set_backend(None)

x = torch.tensor([0.5, -1.5], dtype=torch.float64)
cubes = lambda x: (x ** 3).sum()
for lib, other in ((a, b), (b, a), (a, a)):
    assert torch.allclose(lib.grad(cubes)(x), 3 * x ** 2)
    assert torch.allclose(lib.jacrev(torch.sin)(x), torch.diag(torch.cos(x)))
    # each within the other, and on the same backend
    for backend in lib.available_backends():
        with lib.use_backend(backend), other.use_backend(backend):
            assert torch.allclose(lib.jacrev(other.grad(cubes))(x), torch.diag(6 * x)), backend
            assert not lib.jacrev(other.grad(cubes))(x).requires_grad
            assert torch.allclose(lib.vmap(other.grad(lambda s: s ** 3))(x), 3 * x ** 2), backend
assert _environment()["variables"] == {"SOMEPKG__VENDOR_TFC_BACKEND": "autograd"}
assert PACKAGE == "somepkg._vendor.tfc"
"""


@pytest.mark.slow
def test_vendored_twice(tmp_path):
    for folder in (tmp_path / "somepkg" / "_vendor", tmp_path / "otherpkg"):
        shutil.copytree(PACKAGE, folder / "tfc", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "__init__.py").touch()
    (tmp_path / "somepkg" / "__init__.py").touch()
    process = run_python("-c", VENDORED, path=[tmp_path], SOMEPKG__VENDOR_TFC_BACKEND="autograd")
    assert process.returncode == 0, process.stdout + process.stderr
