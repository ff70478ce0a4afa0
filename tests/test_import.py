"""What an import of the package does to a process: next to nothing. Each test looks at a fresh one."""

from __future__ import annotations

import json

import pytest
import torch
from support.processes import run_python

from torch_func_compat._torch import facts

LIMIT = 0.1  # of the time that torch takes to be imported

IMPORT = """
import json, sys, time, warnings
start = time.process_time()  # which a busy machine does not stretch
import torch
its = time.process_time() - start
before, filters = snapshot(torch), list(warnings.filters)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    start = time.process_time()
    import torch_func_compat as tfc
    seconds = time.process_time() - start
found = {"share": seconds / its, "at_import": changed(before), "functorch": "functorch" in sys.modules}
found["at_import"] += ["filters"] if warnings.filters != filters else []
"""

FIRST_USE = """
x = torch.ones(3, requires_grad=True)

def use(lib):
    lib.vmap(lib.grad(lambda x: (x * x).sum()))(torch.ones(2, 3))
    lib.jacrev(torch.sin)(x), lib.hessian(lambda x: (x * x).sum())(x)

# what torch itself changes when it is first used (2.6 replaces torch.manual_seed, for one)
torch.autograd.grad(x.sum(), x)
if hasattr(torch, "func"):
    use(torch.func)
if str(torch.__version__).startswith("2.3."):  # a module of torch's that the library has to import there
    import torch.nested._internal.nested_tensor
before = snapshot(torch)
# choosing must not import functorch, either
with tfc.use_backend("autograd"):
    use(tfc), tfc.jacfwd(torch.sin)(x)
found["by_autograd"] = changed(before)
found["functorch_after_autograd"] = "functorch" in sys.modules
if hasattr(torch, "func"):
    use(tfc), tfc.jacfwd(torch.sin)(x)
    found["by_torch_func"] = changed(before)
print(json.dumps(found))
"""

SNAPSHOT = """
import os, sys, warnings

def snapshot(torch):
    owners = [torch, torch.Tensor, torch._C, torch._C._TensorBase, torch.autograd, torch.autograd.Function,
              torch.autograd.functional, torch.autograd.forward_ad, torch.autograd.function, torch.nn.functional,
              torch.nn.Module, torch.nn.Parameter, torch.jit, torch.random, torch.utils._pytree, torch.linalg,
              torch.cuda, torch.serialization, getattr(torch, "func", None), getattr(torch, "_functorch", None),
              getattr(torch, "_vmap_internals", None), getattr(torch, "compiler", None), sys, warnings]
    found = {(str(owner), name): value for owner in owners if owner is not None
             for name, value in list(vars(owner).items())}
    registry = getattr(torch.utils._pytree, "SUPPORTED_NODES", {})
    found.update({("pytree", key): value for key, value in registry.items()})
    return found

# what moves by itself: the import system, the warnings that were shown, and the last error
MOVING = {"modules", "path_importer_cache", "last_value", "last_type", "last_traceback", "_filters_version", "filters",
          "onceregistry", "_onceregistry", "__warningregistry__"}

def changed(before):
    after = snapshot(sys.modules["torch"])
    return [repr(key) for key in before if key[-1] not in MOVING and after.get(key, after) is not before[key]]
"""


def loads(process):
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def first():
    """A process that imports the package, then uses it."""
    return loads(run_python("-c", SNAPSHOT + IMPORT + FIRST_USE))


@pytest.mark.slow
def test_time(first):
    """The smallest share of up to five, for a machine may be busy; the first one also wrote the bytecode."""
    shares = [first["share"]]
    while min(shares) > LIMIT and len(shares) < 5:
        # without what measures coverage there
        script = SNAPSHOT + IMPORT + "print(json.dumps(found))"
        process = run_python("-c", script, PYTHONDONTWRITEBYTECODE=None, COVERAGE_PROCESS_START=None)
        shares.append(loads(process)["share"])
    assert min(shares) <= LIMIT, shares


def test_no_functorch(first):
    assert not first["functorch"]
    assert not first["functorch_after_autograd"]


@pytest.mark.parametrize("when", ["at_import", "by_autograd", "by_torch_func"])
def test_patches_nothing(first, when):
    if when not in first:
        pytest.skip("no torch.func")
    assert first[when] == []


separate = pytest.mark.skipif(not facts.has("functorch_is_separate"), reason="functorch is not asked for here")
REPORT = "import json, torch_func_compat as tfc; print(json.dumps([tfc.get_backend(), tfc.unavailable_backends()]))"


@separate
@pytest.mark.parametrize("error", ["RuntimeError('no luck')", "SystemError('no luck')", "ImportError('no luck')"])
def test_functorch_that_fails_to_import(tmp_path, error):
    (tmp_path / "functorch").mkdir()
    (tmp_path / "functorch" / "__init__.py").write_text(f"raise {error}")
    answers, missing = loads(run_python("-c", REPORT, path=[tmp_path]))
    assert answers == "autograd"
    assert f"{error.partition('(')[0]}: no luck" in missing["functorch"]
    assert "install functorch" in missing["functorch"]


@pytest.mark.skipif(facts.TORCH[:2] != (1, 12), reason="functorch 0.2.1 is for torch 1.12")
def test_functorch_without_jit():
    """functorch 0.2.1 raises an AttributeError from torch.jit where that is switched off."""
    pytest.importorskip("functorch")
    answers, missing = loads(run_python("-c", REPORT, PYTORCH_JIT="0"))
    assert answers == "autograd"
    assert "AttributeError" in missing["functorch"]


@separate
@pytest.mark.skipif(facts.TORCH >= (1, 13), reason="torch ships functorch")
def test_functorch_that_is_not_installed(tmp_path):
    (tmp_path / "functorch.py").write_text("raise ModuleNotFoundError(\"No module named 'functorch'\")")
    answers, missing = loads(run_python("-c", REPORT, path=[tmp_path]))
    assert answers == "autograd"
    assert "functorch==0.1.1 for torch 1.11" in missing["functorch"]


def test_attributes():
    import torch_func_compat as tfc

    assert tfc.__version__.count(".") == 2
    assert tuple(map(int, tfc.__api_version__.split("."))) <= (2, 15)
    assert all(hasattr(tfc, name) for name in tfc.__all__)
    assert isinstance(torch.__version__, str)
