"""A pytest plugin that runs a suite with this library in place of modules that it imports.

``DOWNSTREAM_SWAP`` names the modules, separated by commas: ``tad_mctc.autograd``, ``torch.func``; nothing for a plain
run. ``DOWNSTREAM_REPORT`` is a file for the outcomes, for the values that tests record, and for how often the library
was called. A run that swaps and never calls the library has failed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from collections import Counter

import pytest
import torch

import torch_func_compat as tfc
from torch_func_compat import tad_mctc
from torch_func_compat._torch import facts
from torch_func_compat.autograd import internals

SWAPPED = [name for name in os.environ.get("DOWNSTREAM_SWAP", "").split(",") if name]
REPORT = os.environ.get("DOWNSTREAM_REPORT")
WORKER = os.environ.get("PYTEST_XDIST_WORKER")

is_compiling = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)

calls: Counter[str] = Counter()
outcomes: dict[str, str] = {}
reasons: dict[str, str] = {}
values: dict[str, list[float]] = {}


def counted(name, function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        if not is_compiling():
            calls[name] += 1
        return function(*args, **kwargs)

    return wrapper


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of ours under the names of others'."""

    def __init__(self, modules):
        self.modules = modules  # name -> what to import, or the module itself

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name in self.modules else None

    def create_module(self, spec):
        module = self.modules[spec.name]
        return importlib.import_module(module) if isinstance(module, str) else module

    def exec_module(self, module):
        # the import system has just made it forget whose it is
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None, is_package=hasattr(module, "__path__"))


def swap_tad_mctc():
    assert "tad_mctc" not in sys.modules, "too late: tad_mctc has been imported"
    ours = tad_mctc.__name__
    names = [name.rpartition(".")[2] for name in sys.modules if name.startswith(ours + ".")]
    wrappers = {}
    for module in [tad_mctc, *(sys.modules[f"{ours}.{name}"] for name in names)]:
        for name in module.__all__:
            function = vars(module).get(name)
            if isinstance(function, types.FunctionType):
                if function not in wrappers:
                    wrappers[function] = counted(f"tad_mctc.{name}", function)
                setattr(module, name, wrappers[function])
    modules = {"tad_mctc.autograd": ours, **{f"tad_mctc.autograd.{name}": f"{ours}.{name}" for name in names}}
    sys.meta_path.insert(0, Finder(modules))


def swap_torch_func():
    # whatever it was that the library wanted to know of torch.func
    tfc.available_backends()
    for fact in facts.FACTS:
        facts.has(fact)
    module = types.ModuleType("torch.func", "torch_func_compat in the place of torch.func")
    module.__path__ = []
    vars(module).update({k: v for k, v in vars(getattr(torch, "func", object)).items() if not k.startswith("__")})
    for name in {*internals.__all__, *tfc.__all__}:
        function = getattr(tfc, name, None)
        if isinstance(function, types.FunctionType):
            setattr(module, name, counted(name, function))
    if hasattr(tfc, "vmap") and hasattr(torch, "vmap"):
        torch.vmap = module.vmap
    torch.func = sys.modules["torch.func"] = module
    sys.meta_path.insert(0, Finder({"torch.func": module}))


SWAPS = {"tad_mctc.autograd": swap_tad_mctc, "torch.func": swap_torch_func}
for swapped in SWAPPED:
    SWAPS[swapped]()


def took_place(name):
    """Whether what one imports under that name is ours."""
    module = importlib.import_module(name)
    function = module.jacrev
    return getattr(function, "__wrapped__", None) is internals.jacrev


@pytest.fixture
def record(request):
    """Keep numbers, to be compared between the runs."""

    def keep(name, tensor):
        values[f"{request.node.nodeid}::{name}"] = tensor.detach().double().reshape(-1).tolist()

    return keep


def pytest_report_header():
    return f"in the place of {', '.join(SWAPPED)}: torch_func_compat" if SWAPPED else "plain: nothing is swapped"


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        outcome = "xfailed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
        outcomes[report.nodeid] = outcome
        if outcome == "failed":
            reasons[report.nodeid] = str(report.longrepr)[-1500:]


def pytest_collectreport(report):
    if report.failed:
        outcomes[report.nodeid] = "failed"
        reasons[report.nodeid] = str(report.longrepr)[-1500:]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    if REPORT:
        found = dict(torch=str(torch.__version__), calls=calls, outcomes=outcomes, values=values, reasons=reasons)
        with open(REPORT + (f".{WORKER}" if WORKER else ""), "w", encoding="utf-8") as file:
            json.dump(found, file)
    for name in SWAPPED:
        if not session.config.option.collectonly and not took_place(name):
            raise pytest.UsageError(f"the swap of {name} did not take place")
