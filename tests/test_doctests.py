"""The examples in docstrings on every backend, and those in the README and the documentation."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import torch_func_compat as tfc

ROOT = Path(__file__).resolve().parent.parent
NATIVE = {
    f"torch_func_compat.{name}"
    for name in (
        *(
            "_backends.functorch",
            "_guards.while_tracing",
            "_backends.torch_func",
            "_backends.levels",
            "_backends.traced",
            "_guards.by_operation",
        ),
        *("_functions.interpreters", "_functions.forward_by_transpose", "_functions.generated_vmap"),
    )
}
MODULES = ["torch_func_compat", *(m.name for m in pkgutil.walk_packages(tfc.__path__, "torch_func_compat."))]
TEXTS = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}
BLOCKS = {
    name: re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    for name, path in TEXTS.items()
}


class Checker(doctest.OutputChecker):
    """Backends may differ in the sign of a zero."""

    def check_output(self, want, got, optionflags):
        want, got = (re.sub(r"-0\.(?![0-9])", "0.", text) for text in (want, got))
        return super().check_output(want, got, optionflags | doctest.NORMALIZE_WHITESPACE)


def import_or_skip(name):
    try:
        return importlib.import_module(name)
    except Exception:
        if name in NATIVE:
            pytest.skip("this torch does not have it")
        raise


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name, backend):
    module = import_or_skip(name)
    runner = doctest.DocTestRunner(Checker(), verbose=False)
    output = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def test_every_public_function_has_an_example():
    exempt = {"FallbackWarning"}
    for name in tfc.__all__:
        value = getattr(tfc, name)
        if callable(value) and name not in exempt:
            assert value.__doc__, name
    for name in ("vmap", "vjp", "jvp", "grad", "grad_and_value", "jacrev", "jacfwd", "hessian"):
        assert ">>> " in getattr(tfc, name).__doc__, name


@pytest.mark.filterwarnings("ignore::torch_func_compat.FallbackWarning")
@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if blocks])
@pytest.mark.any_torch
def test_python_in_markdown(name, backend):
    """The blocks of a file one after the other, as somebody who reads it would run them."""
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(BLOCKS[name]):
        exec(compile(block, f"{name}, block {number}", "exec", dont_inherit=True), namespace)


def test_readme_has_code():
    assert BLOCKS["README.md"]
