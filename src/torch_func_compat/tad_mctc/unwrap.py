"""Unwrapping; see `torch_func_compat.autograd.checks`."""

from __future__ import annotations

from torch import Tensor

from ..autograd import checks
from ..autograd.checks import is_compiling

__all__ = ["unwrap_gradtracking"]


def unwrap_gradtracking(x: Tensor) -> Tensor:
    """The tensor beneath the grad-tracking layers of `x`; `x` itself while torch.compile traces.

    Parameters
    ----------
    x : Tensor
        Wrapped or not.

    Returns
    -------
    Tensor
        `x` itself where it has no such layers.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import unwrap_gradtracking
    >>> x = torch.ones(3)
    >>> unwrap_gradtracking(x) is x
    True
    """
    return x if is_compiling() else checks.unwrap_gradtracking(x)
