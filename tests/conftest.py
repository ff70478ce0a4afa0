"""The fixtures that every test shares: the backends of this environment, the device, expected failures."""

from __future__ import annotations

import fnmatch
import gc

import pytest
import torch
from support.xfails import XFAILS

import torch_func_compat as tfc
from torch_func_compat._guards import trial
from torch_func_compat._guards.verdicts import Verdicts

# The plugin for others; pytest finds it by itself where the package is installed.
pytest_plugins = ["pytest_torch_func_compat"]


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where the tests compute: cpu, cuda, cuda:1, ...")
    parser.addoption("--support", help="folder for what test_support.py sees, for the documentation")


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", tfc.available_backends(), indirect=True)


def pytest_collection_modifyitems(items):
    for item in items:
        name = item.nodeid.replace("\\", "/").partition("tests/")[2] or item.nodeid
        for row in XFAILS:
            if fnmatch.fnmatchcase(name, row.test.replace("[", "[[]")) and row.applies():
                item.add_marker(pytest.mark.xfail(reason=f"{row.reason} ({row.link})", raises=row.raises, strict=True))


def pytest_collection_finish():
    # Thousands of collected tests stay until the end: without them, each later collection takes a tenth of the time.
    gc.collect()
    gc.freeze()


@pytest.fixture
def backend(request):
    """Each backend that this environment has, in use during the test."""
    with tfc.use_backend(request.param):
        yield request.param


@pytest.fixture(scope="session")
def device(request):
    """The device given with --device."""
    chosen = torch.device(request.config.getoption("--device"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        pytest.exit("--device cuda, but torch sees no GPU", returncode=4)
    return chosen


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_verdicts(monkeypatch):
    """Each test is the first to call its functions."""
    monkeypatch.setattr(trial, "_verdicts", Verdicts())


@pytest.fixture
def without_checks():
    """The rows alone: the test of a first call would find many a wrong answer, too."""
    with tfc.use_checks("off"):
        yield
