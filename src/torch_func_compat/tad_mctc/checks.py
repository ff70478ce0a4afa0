"""Whether a tensor is wrapped by a transform; see `torch_func_compat.autograd.checks`."""

from __future__ import annotations

from typing import Any

from ..autograd import checks
from ..autograd.checks import is_compiling

__all__ = ["is_batched", "is_functorch_tensor", "is_gradtracking", "is_vmapped"]


# Test suites replace `is_compiling` of this very module.


def is_gradtracking(x: Any) -> bool:
    """Whether a transform that is running tracks `x`, at any layer; True while torch.compile traces."""
    return is_compiling() or checks.is_gradtracking(x)


def is_batched(x: Any) -> bool:
    """Whether a vmap that is running maps `x`, at any layer; True while torch.compile traces."""
    return is_compiling() or checks.is_batched(x)


def is_functorch_tensor(x: Any) -> bool:
    """`is_gradtracking` or `is_batched`."""
    return is_gradtracking(x) or is_batched(x)


is_vmapped = is_batched
