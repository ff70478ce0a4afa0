"""Distances between points."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..._torch import facts
from .composition import Composition


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    return _lengths(x1.unsqueeze(-2) - x2.unsqueeze(-3), p)


def _pdist(input: Tensor, p: float = 2.0) -> Tensor:
    first, second = torch.triu_indices(input.size(0), input.size(0), 1, device=input.device).unbind(0)
    return _lengths(input.index_select(0, first) - input.index_select(0, second), p)


def _lengths(apart: Tensor, p: float) -> Tensor:
    """p-norms over the last dimension. As in torch's kernels, the derivatives of the norm of zero are zero."""
    if p == 0 or not apart.size(-1):
        return (apart != 0).to(apart.dtype).sum(-1)
    together = (apart == 0).all(-1)
    apart = torch.where(together.unsqueeze(-1), torch.ones_like(apart), apart)
    # The second derivative of abs is a tensor without memory, which vmap of torch 1.13 does not batch.
    sizes = apart * apart.detach().sign()
    if p == 1:
        lengths = sizes.sum(-1)
    elif p == 2:
        lengths = (apart * apart).sum(-1).sqrt()
    elif p == math.inf:
        largest = sizes.detach().amax(-1, keepdim=True)
        # Where several entries are the largest, torch's kernels give each of them a derivative of one.
        is_largest = (sizes == largest).to(sizes.dtype)
        lengths = (sizes * is_largest).sum(-1) - ((is_largest.sum(-1, keepdim=True) - 1) * largest).squeeze(-1)
    else:
        if p < 1:  # The derivatives at zero are infinite; torch's kernels give zero.
            powers = torch.where(sizes == 0, torch.ones_like(sizes), sizes).pow(p)
            powers = torch.where(sizes == 0, torch.zeros_like(sizes), powers)
        else:
            powers = sizes.pow(p)
        lengths = powers.sum(-1).pow(1 / p)
    return torch.where(together, torch.zeros_like(lengths), lengths)


ROWS: tuple[Composition, ...] = (
    Composition(
        ("cdist", "ops.aten.cdist"),
        ("Cdist",),
        1 if facts.TORCH < (1, 11) else 2,
        _cdist,
        "no second derivative (to torch 2.13); torch.func batches its backward wrongly. First derivatives of batches "
        "that are broadcast read other memory (measured on torch 1.8)",
    ),
    Composition(
        ("pdist", "ops.aten.pdist"),
        ("Pdist",),
        2 if facts.TORCH < (2, 15) else 3,
        _pdist,
        "no second derivative (measured on torch 1.8 to 2.13); third derivatives are wrong (measured on torch 2.15)",
    ),
)
