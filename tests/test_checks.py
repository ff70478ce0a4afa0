"""What the checks see: under the library's own transforms, torch.func's, functorch's and the vmap of old torch."""

from __future__ import annotations

import pytest
import torch
from support.processes import run_python
from torch._vmap_internals import _vmap as legacy_vmap

import torch_func_compat as tfc
from torch_func_compat._torch import facts
from torch_func_compat.autograd import checks

X = torch.arange(6.0).view(2, 3)


def library():
    if facts.has("torch_func"):
        return torch.func
    return pytest.importorskip("functorch")


# transforms around `look`, then whether it sees a batched and a tracked tensor
COMPOSITIONS = {
    "none": (lambda lib, look: look, False, False),
    "vmap": (lambda lib, look: lib.vmap(look), True, False),
    "grad": (lambda lib, look: lib.grad(look), False, True),
    "jacrev": (lambda lib, look: lib.jacrev(look), False, True),
    "jvp": (lambda lib, look: lambda x: lib.jvp(look, (x,), (x,)), False, True),
    "vmap(vmap)": (lambda lib, look: lib.vmap(lib.vmap(look)), True, False),
    "vmap(grad)": (lambda lib, look: lib.vmap(lib.grad(look)), True, True),
    "grad(vmap)": (lambda lib, look: lib.grad(lambda x: lib.vmap(look)(x).sum()), True, True),
    "vmap(jacrev(jacrev))": (lambda lib, look: lib.vmap(lib.jacrev(lib.jacrev(look))), True, True),
    "jacrev(vmap(jacrev))": (lambda lib, look: lib.jacrev(lib.vmap(lib.jacrev(look))), True, True),
    "jacrev(jacrev)": (lambda lib, look: lib.jacrev(lib.jacrev(look)), False, True),
}


# The reverse derivatives of this library wrap nothing here: outside of vmap and forward mode, and as the gradient of a
# batch by torch.func, they run on plain autograd.
PLAIN = {"grad", "jacrev", "grad(vmap)", "jacrev(jacrev)"} | ({"vmap(grad)"} if facts.has("torch_func") else set())


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("own", [True, False], ids=["own", "library's"])
def test_at_any_depth(composition, own):
    if own and "functorch" not in tfc.available_backends() and not facts.has("torch_func"):
        pytest.skip("nothing wraps tensors here")
    lib = tfc if own else library()
    transform, batched, tracked = COMPOSITIONS[composition]
    if own and composition in PLAIN:
        tracked = False
    seen = []

    def look(x):
        seen.append((checks.is_batched(x), checks.is_gradtracking(x), checks.is_functorch_tensor(x)))
        seen.append((checks.unwrap(x), checks.unwrap(checks.unwrap(x))))
        return x.sin().sum()

    transform(lib, look)(X)
    assert seen[0] == (batched, tracked, batched or tracked)
    plain, again = seen[1]
    assert plain is again
    assert not checks.is_functorch_tensor(plain)
    assert torch.equal(plain.flatten(), X.flatten())


def test_autograd_backend_wraps_nothing():
    seen = []

    def look(x):
        seen.append(checks.is_functorch_tensor(x))
        return x.sin().sum()

    with tfc.use_backend("autograd"):
        tfc.vmap(tfc.jacrev(tfc.jacrev(look)))(X)
    assert set(seen) == {False}


def test_what_a_transform_does_not_map_is_not_batched():
    shared = torch.ones(3)
    seen = []

    def look(x, y):
        seen.append((checks.is_batched(x), checks.is_batched(y), checks.is_batched(shared), checks.is_batched(x * y)))
        return x * y

    library().vmap(look, in_dims=(None, 0))(shared, X)
    assert seen == [(False, True, False, True)]


def test_unwrap_gradtracking_stops_at_vmap():
    seen = []

    def look(x):
        seen.append(checks.unwrap_gradtracking(x))
        return x.sin()

    lib = library()
    lib.jacrev(lambda x: lib.vmap(look)(x).sum())(X)
    lib.vmap(lib.jacrev(look))(X)
    lib.jacrev(lib.jacrev(look))(X[0])
    inside, below, plain = seen
    assert torch.equal(plain, X[0]) and not checks.is_functorch_tensor(plain)
    for kept in (inside, below):  # the values of a transform that is over: only the kind of wrapper is looked at
        assert checks.native().is_batchedtensor(kept)


def test_constants_of_a_transform_survive_it():
    kept = []

    def energy(x):
        constant = torch.full_like(x, 2.0)
        kept.append(checks.unwrap_gradtracking(constant))
        return (constant * x**3).sum()

    lib = library()
    lib.jacrev(lib.jacrev(energy))(X[0])
    assert torch.equal(kept[0], torch.full((3,), 2.0))
    assert torch.equal(lib.grad(lambda x: (kept[0] * x).sum())(X[0]), kept[0])


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_legacy_vmap(size):
    """Among the batch sizes are those that the check itself asks for."""
    seen = []

    def look(x):
        seen.append((checks.is_batched(x), checks.is_batched(torch.ones(3)), checks.is_gradtracking(x)))
        seen.append(checks.unwrap(x))
        return x + 1

    x = torch.arange(size * 2.0).view(size, 2)
    legacy_vmap(look)(x)
    legacy_vmap(legacy_vmap(look))(x)
    assert seen[0] == seen[2] == (True, False, False)
    assert torch.equal(seen[1], x) and torch.equal(seen[3], x)
    assert not checks.is_batched(x)


def test_backward_of_batched_rows():
    """torch batches rows of a Jacobian by its old vmap, on the newest torch, too."""
    seen = []

    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            seen.append(checks.is_batched(gradient))
            return 2 * gradient

    torch.autograd.functional.jacobian(Double.apply, torch.ones(3), vectorize=True)
    assert seen == [True]


@pytest.mark.parametrize("x", [None, 1.0, "x", object()])
def test_what_is_no_tensor(x):
    assert not (checks.is_batched(x) or checks.is_gradtracking(x) or checks.is_functorch_tensor(x))


def test_looked_up_when_called(monkeypatch):
    """A mocked library is asked, as test suites do; here it takes everything for batched."""

    class Library:
        is_batchedtensor = is_gradtrackingtensor = staticmethod(lambda x: True)

    monkeypatch.setattr(torch._C, "_functorch", Library, raising=False)
    assert checks.is_batched(object()) and checks.is_gradtracking(object())


def test_while_compiling(monkeypatch):
    x = torch.ones(3)
    monkeypatch.setattr(checks, "is_compiling", lambda: True)
    assert checks.is_batched(x) and checks.is_gradtracking(x) and checks.is_functorch_tensor(x)
    assert checks.unwrap(x) is x and checks.unwrap_gradtracking(x) is x


COMPILED = """
import torch, torch._dynamo
from torch_func_compat import vmap
from torch_func_compat.autograd import checks

def careful(x):
    y = checks.unwrap_gradtracking(x)
    if not (checks.is_batched(x) or checks.is_gradtracking(x) or checks.is_functorch_tensor(x)):
        assert float(x.sum()) > 0  # cannot be traced
    return x.sin() + checks.unwrap(y)

x = torch.ones(2, 3)
for function in (careful, vmap(careful)):
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x.sin() + x)
"""


@pytest.mark.slow
@pytest.mark.skipif(facts.TORCH < (2, 6), reason="vmap is traced as a whole from 2.6 on")
def test_compiled():
    process = run_python("-c", COMPILED)
    assert process.returncode == 0, process.stderr


@pytest.mark.skipif(not facts.has("functorch_is_separate"), reason="functorch is no package of its own")
def test_functorch_is_not_imported():
    script = "import sys, torch; from torch_func_compat.autograd import checks; checks.is_batched(torch.ones(3)); "
    process = run_python("-c", script + "assert 'functorch' not in sys.modules")
    assert process.returncode == 0, process.stderr
