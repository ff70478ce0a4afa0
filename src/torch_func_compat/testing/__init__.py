"""Checks of derivatives for the test suites of packages: every operator, on every backend, against a reference.

>>> import torch
>>> from torch_func_compat.testing import check
>>> x = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.1]], dtype=torch.float64)
>>> report = check(lambda x: (x[1] - x[0]).norm(), (x,), operators=["grad", "hessian"], backends="autograd")
>>> report.ok
True

In the manner of Julia's DifferentiationInterfaceTest: a `Scenario` is data, `check` makes scenarios of a function and
`check_scenarios` runs them. The fixture ``autograd_backend`` of the pytest plugin runs a test on every backend.
"""

from __future__ import annotations

from ._check import check, check_scenarios
from ._operators import BATCH_OPERATORS, OPERATORS
from ._report import DerivativeError, Report, Row
from ._scenario import Scenario

__all__ = [
    "BATCH_OPERATORS",
    "OPERATORS",
    "DerivativeError",
    "Report",
    "Row",
    "Scenario",
    "check",
    "check_scenarios",
]
