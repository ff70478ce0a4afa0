"""Every failure that is expected, with its reason and where it is known upstream. Strict: a pass fails."""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from packaging.version import Version

TORCH = Version(str(torch.__version__)).release


class XFail(NamedTuple):
    test: str  # below tests/, as a pattern: "test_vmap.py::test_name[torch.func*"; [ stands for itself
    reason: str
    link: str
    raises: tuple[type[BaseException], ...] = (Exception,)
    applies: Callable[[], bool] = lambda: True


XFAILS: tuple[XFail, ...] = ()
