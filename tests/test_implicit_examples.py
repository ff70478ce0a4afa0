"""The examples of implicit differentiation, as scripts and on every backend."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support.processes import run_python

import torch_func_compat as tfc

pytestmark = pytest.mark.any_torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = ["charges", "implicit_euler", "ridge"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_as_a_script(name):
    process = run_python("-W", "ignore", str(EXAMPLES / f"{name}.py"))
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.count("ok ") >= 5 and "FAILED" not in process.stdout


@pytest.mark.parametrize("name", NAMES)
def test_on_every_backend(backend, name, capsys):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with tfc.use_fallback("silent"):
        assert module.main() == 0, capsys.readouterr().out
