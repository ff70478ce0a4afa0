"""The pytest plugin of torch-func-compat: the fixture ``autograd_backend``.

pytest imports this module in every run, so that it must not import torch before a test asks for the fixture. It is
therefore a module beside the package, which imports torch at once.
"""

from __future__ import annotations

from typing import Iterator

import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "autograd_backend" in metafunc.fixturenames:
        named = [str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize") if mark.args]
        if not any("autograd_backend" in names.replace(",", " ").split() for names in named):
            import torch_func_compat

            metafunc.parametrize("autograd_backend", torch_func_compat.available_backends(), indirect=True)


@pytest.fixture
def autograd_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend of torch_func_compat that this environment has, in use during the test."""
    import torch_func_compat

    with torch_func_compat.use_backend(request.param):
        yield request.param
