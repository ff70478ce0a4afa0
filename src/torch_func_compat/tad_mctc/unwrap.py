"""Unwrapping; see `torch_func_compat.autograd.checks`."""

from __future__ import annotations

from torch import Tensor

from ..autograd import checks
from ..autograd.checks import is_compiling

__all__ = ["unwrap_gradtracking"]


def unwrap_gradtracking(x: Tensor) -> Tensor:
    """What lies beneath the grad-tracking layers of `x`; `x` itself while torch.compile traces."""
    return x if is_compiling() else checks.unwrap_gradtracking(x)
