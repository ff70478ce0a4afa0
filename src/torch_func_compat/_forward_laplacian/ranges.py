"""Tests for intermediate numbers out of the range of their dtype, where rows of the Hessian may stay in range."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from .carried import RefusedNow

_WHY = "a second derivative leaves the range of its dtype on the way"


def require_range(second: Tensor, firsts: Sequence[Tensor], jacs: Sequence[Tensor]) -> None:
    """Raise `RefusedNow` where a second derivative of an operation is out of range, but may not be so times Jacobians.

    It is too large if it is infinite where the first derivatives are finite and not zero; those of a singularity are
    not. It is too small if it has lost digits and the Jacobians make the loss large.
    """
    if second.is_complex() or not second.is_floating_point():
        return
    info = torch.finfo(second.dtype)
    size = second.detach().abs()
    least = info.tiny / info.eps
    if bool(((size >= least) & (size <= info.max)).all()):
        return
    regular = size == size
    for first in firsts:
        regular = regular & (first.detach().abs() <= info.max) & (first.detach() != 0)
    lost = regular & (size > info.max)
    one, two = (jac.detach().abs().max(0)[0] for jac in jacs)
    lost = lost | ((size < least) & (one * two > info.eps / least))
    if bool(lost.any()):
        raise RefusedNow(_WHY)


def require_finite(lap: Tensor | None) -> None:
    """Raise `RefusedNow` where a Laplacian is not finite: rows of the Hessian show whether it truly is not."""
    if lap is not None and not lap.is_complex() and not bool((lap.detach() - lap.detach() == 0).all()):
        raise RefusedNow(_WHY)
