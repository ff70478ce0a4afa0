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
    if not size or matrix.size(-2) != size:
        return NotImplemented
    if size > 3:
        return _of_singular(matrix) if facts.TORCH < (1, 13) else NotImplemented
    rows = [row.unbind(-1) for row in matrix.unbind(-2)]
    if size == 1:
        return rows[0][0].clone()
    if size == 2:
        return rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) + b * (f * g - d * i) + c * (d * h - e * g)


def _of_singular(matrix: Tensor) -> Any:
    """The determinant of singular matrices by the Faddeev-LeVerrier recurrence, a polynomial of the matrix.

    It loses digits of other matrices, which are left to torch, as are those of more than eight rows.
    """
    size = matrix.size(-1)
    with torch._C.DisableTorchFunction():  # type: ignore[attr-defined,unused-ignore]
        plain = matrix.detach()
        scale = plain.abs().flatten(-2).max(-1)[0] ** size
        singular = torch.det(plain).abs() <= torch.finfo(plain.dtype).eps ** (2 / 3) * scale
        if size > 8 or not bool(singular.any()):
            return NotImplemented
        others = torch.det(matrix)
    one = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    product, coefficient = matrix, -_trace(matrix)
    for k in range(2, size + 1):
        product = matrix @ (product + coefficient[..., None, None] * one)
        coefficient = -_trace(product) / k
    determinant = coefficient if size % 2 == 0 else -coefficient
    return determinant if bool(singular.all()) else torch.where(singular, determinant, others)


def _trace(matrix: Tensor) -> Tensor:
    return matrix.diagonal(0, -2, -1).sum(-1)


def _eigvalsh(input: Tensor, UPLO: str = "L", *, out: Any = None) -> Any:
    return torch.linalg.eigh(input, UPLO)[0] if out is None else NotImplemented


ROWS: tuple[Composition, ...] = (
    Composition(
        ("det", "linalg.det", "Tensor.det", "ops.aten.det", "ops.aten.linalg_det"),
        # Later, plain autograd has the second derivative right where nothing is batched.
        ("LinalgDet", "DetB", "DetLu") if facts.TORCH < (1, 13) else (),
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
        "torch treats it as a constant (measured on torch 1.8)",
        (1, 9),
    ),
)
