"""Distances between points."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .composition import Composition


def _distances(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: Any = None) -> Tensor:
    apart = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    # As in torch's kernel, the derivatives of the distance of a point to itself are zero.
    together = (apart == 0).all(-1)
    distances: Tensor = torch.where(together.unsqueeze(-1), torch.ones_like(apart), apart).norm(p, -1)
    return torch.where(together, torch.zeros_like(distances), distances)


ROWS: tuple[Composition, ...] = (
    Composition(
        ("cdist",),
        "Cdist",
        2,
        _distances,
        "no second derivative (to torch 2.13); torch.func batches its backward wrongly (fact 'cdist_rows_are_wrong')",
    ),
)
