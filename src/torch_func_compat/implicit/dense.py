"""Dense systems: assembled and factorised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import INDEFINITE, NOT_FINITE, SINGULAR, Status, coded
from .vectors import norm
from .vector_problems import LinearProblem, LinearSolver, state

__all__ = ["dense"]

_solve_triangular: Any = getattr(torch.linalg, "solve_triangular", None)  # from torch 1.11 on


class dense(LinearSolver):
    """Assemble the matrix and factorise it.

    For small systems, or many unknowns with a badly conditioned matrix. A symmetric matrix is diagonalized, so that one
    that is singular, or indefinite where a minimum should be, is told apart with certainty; any other is factorised by
    QR, which finds a singular matrix by the diagonal of R.

    Notes
    -----
    Cost: as many products as there are unknowns (batched, where they can be), memory for the square of their number, and
    time for the cube.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.implicit import dense, linear_solve
    >>> diagonal = torch.tensor([2.0, 4.0])
    >>> linear_solve(lambda v: diagonal * v, torch.ones(2), solve=dense())
    tensor([0.5000, 0.2500])
    """

    def run(self, problem: LinearProblem) -> tuple[Tensor, Status]:
        matrix, b = problem.matrix(), problem.b
        finite = torch.isfinite(matrix.sum() + b.sum())
        matrix = torch.where(finite, matrix, torch.eye(problem.size, dtype=b.dtype, device=b.device))
        x, code = (_symmetric if problem.symmetric else _general)(matrix, b, problem.definite)
        x = torch.where(finite, x, torch.full_like(x, float("nan")))
        code = coded(~finite, NOT_FINITE, code)
        return x, state(code, 1, norm(matrix @ x - b), problem.tolerance() * norm(b))


def _symmetric(matrix: Tensor, b: Tensor, definite: bool) -> tuple[Tensor, Tensor]:
    """By eigenvalues, of what congruence makes of like size."""
    scale = _scale(matrix, 1).sqrt()
    levels, vectors = torch.linalg.eigh(scale.unsqueeze(1) * ((matrix + matrix.transpose(0, 1)) / 2) * scale)
    zero = levels.abs() <= len(b) * torch.finfo(b.dtype).eps * levels.abs().max()
    code = coded(zero.any(), SINGULAR)
    if definite:
        code = coded((levels < 0).any() & ~zero.any(), INDEFINITE, code)
    inner = (vectors.transpose(0, 1) @ (scale * b)) / torch.where(zero, torch.ones_like(levels), levels)
    return scale * (vectors @ inner), code


def _general(matrix: Tensor, b: Tensor, definite: bool) -> tuple[Tensor, Tensor]:
    """By QR, of rows and columns of like size."""
    rows = _scale(matrix, 1)
    matrix = rows.unsqueeze(1) * matrix
    columns = _scale(matrix, 0)
    q, r = torch.linalg.qr(matrix * columns)
    pivots = torch.diagonal(r).abs()
    zero = pivots <= len(b) * torch.finfo(b.dtype).eps * pivots.max()
    r = torch.where(zero.any(), torch.eye(len(b), dtype=b.dtype, device=b.device), r)
    inner = solve_upper(r, q.transpose(0, 1) @ (rows * b))
    return columns * inner, coded(zero.any(), SINGULAR)


def _scale(matrix: Tensor, dim: int) -> Tensor:
    largest = matrix.abs().max(dim)[0]
    return 1 / torch.where(largest > 0, largest, torch.ones_like(largest))


def solve_upper(r: Tensor, right: Tensor) -> Tensor:
    """Back substitution."""
    if _solve_triangular is None:
        found: Tensor = torch.triangular_solve(right.unsqueeze(1), r, upper=True)[0]
    else:
        found = _solve_triangular(r, right.unsqueeze(1), upper=True)
    return found.squeeze(1)
