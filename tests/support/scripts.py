"""The examples as scripts, in the process of the tests: a fresh one would import torch each time."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import runpy
import sys
import warnings
from pathlib import Path
from unittest import mock

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"


def run_example(name, *arguments):
    """Run an example as `__main__`: its exit status, and what it printed."""
    script = str(EXAMPLES / f"{name}.py")
    printed, status = io.StringIO(), 0
    with mock.patch.object(sys, "argv", [script, *arguments]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.redirect_stdout(printed):
            try:
                runpy.run_path(script, run_name="__main__")
            except SystemExit as stop:
                status = stop.code
    return status, printed.getvalue()


def load_example(name):
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {name: module}):  # dataclasses look their module up
        spec.loader.exec_module(module)
    return module
