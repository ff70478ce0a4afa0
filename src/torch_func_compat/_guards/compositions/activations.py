"""Activations."""

from __future__ import annotations

import torch
from torch import Tensor

from .composition import Composition


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    if inplace:
        return input.copy_(_hardsigmoid(input.clone()))
    # unlike clamp, hardtanh has zero for its derivative at both ends, as torch's kernel has
    return torch.nn.functional.hardtanh(input + 3, 0.0, 6.0) / 6


def _hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    if inplace:
        return input.copy_(_hardswish(input.clone()))
    output = torch.where(input <= 3, input * (input + 3) / 6, input)
    return torch.where(input < -3, torch.zeros_like(input), output)


ROWS: tuple[Composition, ...] = (
    Composition(
        ("nn.functional.hardsigmoid", "_C._nn.hardsigmoid", "ops.aten.hardsigmoid"),
        ("Hardsigmoid",),
        2,
        _hardsigmoid,
        "its backward has no derivative (measured on torch 1.8 to 2.15)",
    ),
    Composition(
        ("nn.functional.hardswish", "_C._nn.hardswish", "ops.aten.hardswish"),
        ("Hardswish",),
        2,
        _hardswish,
        "its backward has no derivative (measured on torch 1.8 to 1.12)",
        (1, 13),
    ),
)
