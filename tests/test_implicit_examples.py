"""The examples of implicit differentiation, as scripts on every backend."""

from __future__ import annotations

import pytest
from support.scripts import run_example

pytestmark = pytest.mark.any_torch


@pytest.mark.slow
@pytest.mark.parametrize("name", ["charges", "implicit_euler", "ridge"])
def test_as_a_script(backend, name):
    status, printed = run_example(name)
    assert status == 0, printed
    assert printed.count("ok ") >= 5 and "FAILED" not in printed
