"""Two copies of the package under other names, side by side with each other and with the package itself."""

from __future__ import annotations

import shutil

import pytest
from support.processes import PACKAGE, run_python

pytestmark = pytest.mark.any_torch

SCRIPT = """
import sys, warnings
import torch
import first.compat as a, second._vendor.compat as b

x = torch.tensor([0.5, -1.5], dtype=torch.float64)
cubes = lambda x: (x**3).sum()
native = a.available_backends()[0]
"""

CASES = {
    # each copy has variables of its own, and the package's are not theirs
    "variables": """
assert (a.get_backend(), a.get_fallback()) == ("autograd", "error")
assert (b.get_backend(), b.get_fallback()) == (native, "silent")
""",
    "settings": """
a.set_backend("autograd"), a.set_fallback("silent")
assert b.get_backend() == native and b.get_fallback() == "silent"
a.set_fallback("error")
assert b.get_fallback() == "silent"
a.set_fallback(None)
with b.use_fallback("warn"), b.use_backend("autograd"):
    a.set_backend(None)
    assert a.get_fallback() == "error"
""",
    "warnings": """
def refused(x):
    return x.sum() if float(x.sum().item()) > 0 else x.sum()

assert a.FallbackWarning is not b.FallbackWarning and not issubclass(a.FallbackWarning, b.FallbackWarning)
with a.use_backend(native), b.use_backend(native), a.use_fallback("warn"), b.use_fallback("warn"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore", a.FallbackWarning)
        warnings.simplefilter("always", b.FallbackWarning)
        for copy in (a, a, b, b):  # each warns once of the function, whatever the other did
            assert torch.equal(copy.vmap(refused)(x.view(2, 1)), x)
    kinds = [type(w.message) for w in caught]
    assert kinds == ([b.FallbackWarning] if native != "autograd" else []), kinds
""",
    "transforms": """
for one, other in ((a, b), (b, a)):
    for backend in one.available_backends():
        with one.use_backend(backend), other.use_backend(backend), one.use_fallback("warn"), other.use_fallback("warn"):
            assert torch.allclose(one.hessian(cubes)(x), torch.diag(6 * x))
            assert torch.allclose(one.jacrev(other.grad(cubes))(x), torch.diag(6 * x))
            assert torch.allclose(one.vmap(other.grad(lambda s: s**3))(x), 3 * x**2)
""",
    "functions": """
def make(copy):
    class Cube(copy.Function):
        @staticmethod
        def forward(x):
            return x**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, gradient):
            return 3 * ctx.saved_tensors[0] ** 2 * gradient

    return Cube.apply

for one, other in ((a, a), (a, b), (b, a)):  # also under the transforms of the other
    with one.use_fallback("silent"), other.use_fallback("silent"):
        energy = lambda x: make(one)(x).sum()
        assert torch.allclose(other.grad(energy)(x), 3 * x**2)
        assert torch.allclose(other.jacrev(other.jacrev(energy))(x), torch.diag(6 * x))
        assert torch.allclose(other.vmap(other.grad(energy))(x.view(2, 1)), 3 * x.view(2, 1) ** 2)
""",
    "drop_in": """
import importlib

for name in ("first.compat", "second._vendor.compat"):
    drop_in = importlib.import_module(name + ".tad_mctc")
    assert torch.allclose(drop_in.hessian(cubes, (x,), argnums=0), torch.diag(6 * x))
    assert torch.allclose(drop_in.attach_gradient(torch.sin, x, x.cos()), x.sin())
    assert importlib.import_module(name + ".autograd.gradcheck").dgradcheck(torch.sin, x.clone().requires_grad_())
""",
    "names": """
assert "torch_func_compat" not in sys.modules
for copy in (a, b):
    package = copy.__name__
    assert copy.grad.__module__.startswith(package)
    own = [n for n, m in sys.modules.items() if ROOT in (getattr(m, "__file__", None) or "")]
    assert own and all(n.partition(".")[0] in ("first", "second") for n in own)
""",
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    root = tmp_path_factory.mktemp("vendored")
    for folder in (root / "first", root / "second" / "_vendor"):
        shutil.copytree(PACKAGE, folder / "compat", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "__init__.py").touch()
    (root / "second" / "__init__.py").touch()
    return root


@pytest.mark.slow
def test_side_by_side(copies):
    """In one process, since importing torch takes longer than all of them."""
    variables = dict(
        FIRST_COMPAT_BACKEND="autograd",
        FIRST_COMPAT_FALLBACK="error",
        SECOND__VENDOR_COMPAT_FALLBACK="silent",
        TORCH_FUNC_COMPAT_FALLBACK="warn",
    )
    script = SCRIPT + f"ROOT = {str(copies)!r}\n" + "".join(f"# {name}\n{case}" for name, case in CASES.items())
    process = run_python("-W", "ignore::FutureWarning", "-c", script, path=[copies], **variables)
    assert process.returncode == 0, process.stdout + process.stderr
