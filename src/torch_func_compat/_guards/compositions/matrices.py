"""Determinants and eigenvalues."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..._torch import facts
from .composition import Composition


def _det(*args: Any, **kwargs: Any) -> Any:
    """By cofactors, which have every derivative at every matrix; larger matrices are left to torch."""
    if len(args) + len(kwargs) != 1:
        return NotImplemented
    matrix: Tensor = (*args, *kwargs.values())[0]
    size = matrix.size(-1) if matrix.dim() > 1 else 0
    if not 0 < size < 4 or matrix.size(-2) != size:
        return NotImplemented
    rows = [row.unbind(-1) for row in matrix.unbind(-2)]
    if size == 1:
        return rows[0][0].clone()
    if size == 2:
        return rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)


def _eigvalsh(input: Tensor, UPLO: str = "L", *, out: Any = None) -> Any:
    return torch.linalg.eigh(input, UPLO)[0] if out is None else NotImplemented


ROWS: tuple[Composition, ...] = (
    Composition(
        ("det", "linalg.det", "Tensor.det", "ops.aten.det", "ops.aten.linalg_det"),
        # Later, plain autograd has the second derivative right where nothing is batched.
        ("LinalgDet", "DetB", "DetLu") if facts.TORCH < (2, 15) else (),
        1 if facts.TORCH < (1, 11) else 2,
        _det,
        "forward mode at singular matrices, and batched second derivatives where singular values coincide, are zero or "
        "not a number (measured on torch 1.11 to 2.6; nested forward mode to 2.15; the gradient on torch 1.8). Up to "
        "three rows; larger ones are left to the autograd backend there",
    ),
    Composition(
        ("linalg.eigvalsh",),
        (),
        1,
        _eigvalsh,
        "torch takes it for constant (measured on torch 1.8)",
        (1, 9),
    ),
)
