"""Whether a tensor is wrapped by a transform; see `torch_func_compat.autograd.checks`."""

from __future__ import annotations

from typing import Any

from ..autograd import checks
from ..autograd.checks import is_compiling

__all__ = ["is_batched", "is_functorch_tensor", "is_gradtracking", "is_vmapped"]


# Test suites replace `is_compiling` of this very module.


def is_gradtracking(x: Any) -> bool:
    """Whether a running transform tracks `x`, at any layer; True while torch.compile traces.

    Parameters
    ----------
    x : Tensor
        Anything else is never wrapped.

    Returns
    -------
    bool
        False while no transform runs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import is_gradtracking
    >>> is_gradtracking(torch.ones(3))
    False
    """
    return is_compiling() or checks.is_gradtracking(x)


def is_batched(x: Any) -> bool:
    """Whether a running vmap maps `x`, at any layer; True while torch.compile traces.

    Parameters
    ----------
    x : Tensor
        Anything else is never wrapped.

    Returns
    -------
    bool
        False while no transform runs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import is_batched
    >>> is_batched(torch.ones(3))
    False
    """
    return is_compiling() or checks.is_batched(x)


def is_functorch_tensor(x: Any) -> bool:
    """Whether a running transform has wrapped `x`: `is_gradtracking` or `is_batched`.

    Parameters
    ----------
    x : Tensor
        Anything else is never wrapped.

    Returns
    -------
    bool
        False while no transform runs.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.tad_mctc import is_functorch_tensor
    >>> is_functorch_tensor(torch.ones(3))
    False
    """
    return is_gradtracking(x) or is_batched(x)


is_vmapped = is_batched
