"""Determinants and eigenvalues."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import torch
from torch import Tensor

from ..._torch import facts
from .composition import Composition

_LARGEST = 8  # of the matrices that are expanded by minors


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


def _det_thrice(*args: Any, **kwargs: Any) -> Any:
    """Larger matrices by minors, too: that takes longer than torch's own, whose third derivatives lose all digits."""
    matrix = (*args, *kwargs.values())[0]
    is_larger = isinstance(matrix, Tensor) and 3 < matrix.size(-1) <= _LARGEST and len(args) + len(kwargs) == 1
    return _by_minors(matrix) if is_larger and matrix.size(-2) == matrix.size(-1) else _det(*args, **kwargs)


def _of_singular(matrix: Tensor) -> Any:
    """By minors where a matrix is singular. Other matrices are left to torch, as are those of more than eight rows."""
    size = matrix.size(-1)
    with torch._C.DisableTorchFunction():  # type: ignore[attr-defined,unused-ignore]
        plain = matrix.detach()
        scale = plain.abs().flatten(-2).max(-1)[0] ** size
        singular = torch.det(plain).abs() <= torch.finfo(plain.dtype).eps ** (2 / 3) * scale
        if size > _LARGEST or not bool(singular.any()):
            return NotImplemented
        others = torch.det(matrix)
    determinant = _by_minors(matrix)
    return determinant if bool(singular.all()) else torch.where(singular, determinant, others)


def _by_minors(matrix: Tensor) -> Tensor:
    """The minors of the first rows, one for each choice of columns, from those of one row less."""
    minors, *rows = matrix.unbind(-2)
    for k, row in enumerate(rows, 2):
        columns, others, signs = _expansion(len(rows) + 1, k)
        terms = row[..., columns] * minors[..., others]
        minors = (terms * torch.tensor(signs, dtype=matrix.dtype, device=matrix.device)).sum(-1)
    return minors[..., 0]


@functools.lru_cache(None)
def _expansion(size: int, k: int) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Minors of `k` rows, expanded along the last one: the columns, the places of the smaller minors, and the signs."""
    place = {columns: i for i, columns in enumerate(itertools.combinations(range(size), k - 1))}
    choices = list(itertools.combinations(range(size), k))
    others = [[place[(*columns[:j], *columns[j + 1 :])] for j in range(k)] for columns in choices]
    return [list(columns) for columns in choices], others, [(-1.0) ** (k - 1 - j) for j in range(k)]


def _eigvalsh(input: Tensor, UPLO: str = "L", *, out: Any = None) -> Any:
    return torch.linalg.eigh(input, UPLO)[0] if out is None else NotImplemented


_DETERMINANTS = ("det", "linalg.det", "Tensor.det", "ops.aten.det", "ops.aten.linalg_det")
ROWS: tuple[Composition, ...] = (
    Composition(
        _DETERMINANTS,
        # Earlier, the next row finds the nodes.
        ("LinalgDet", "DetB", "DetLu") if facts.TORCH >= (1, 13) else (),
        3,
        _det_thrice,
        "third derivatives at and next to singular matrices are rounding errors (measured on torch 1.13 to 2.15)",
    ),
    Composition(
        _DETERMINANTS,
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
