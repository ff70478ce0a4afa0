"""Special functions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .composition import Composition


def _i0(input: Tensor) -> Tensor:
    """By midpoints of the integral (https://dlmf.nist.gov/10.32.E1): exact to rounding up to where it overflows."""
    angles = (torch.arange(128, dtype=input.dtype, device=input.device) + 0.5) * (math.pi / 128)
    return (input.unsqueeze(-1) * angles.cos()).exp().mean(-1)


ROWS: tuple[Composition, ...] = (
    Composition(
        ("i0", "special.i0", "Tensor.i0"),
        ("NotImplemented", "I0Backward"),
        1,
        _i0,
        "it has no derivative (measured on torch 1.8)",
        (1, 11),
    ),
)
