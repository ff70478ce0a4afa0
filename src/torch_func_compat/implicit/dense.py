"""Dense systems: assembled and factorised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import INDEFINITE, NOT_FINITE, SINGULAR, SOLVED, Status, coded
from .vector_problems import LinearProblem, LinearSolver, state
from .vectors import norm

__all__ = ["dense"]

# from torch 1.11 and 1.13 on
_solve_triangular: Any = getattr(torch.linalg, "solve_triangular", None)
_lu_factor: Any = getattr(torch.linalg, "lu_factor_ex", None)
_lu_solve: Any = getattr(torch.linalg, "lu_solve", None)


class dense(LinearSolver):
    """Assemble the matrix and factorise it.

    For small systems, and for badly conditioned ones. A matrix counts as singular if a pivot of its LU factorisation
    vanishes. It is not the Hessian of a minimum if an eigenvalue is negative.

    Notes
    -----
    Cost: as many products as there are unknowns (batched, where they can be), memory for the square of their number,
    and time for the cube.

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
        x, code = _solved(matrix, b)
        if problem.definite:
            code = coded(_is_indefinite(matrix) & (code == SOLVED), INDEFINITE, code)
        x = torch.where(finite, x, torch.full_like(x, float("nan")))
        code = coded(~finite, NOT_FINITE, code)
        return x, state(code, 1, norm(matrix @ x - b), problem.tolerance() * norm(b))


def _solved(matrix: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Solve by elimination, after scaling rows and columns to similar size."""
    rows = _scale(matrix, 1)
    matrix = rows.unsqueeze(1) * matrix
    columns = _scale(matrix, 0)
    # without an error for singular matrices, since a batch may have some
    factors, order = (_lu_factor(matrix * columns) if _lu_factor else torch.lu(matrix * columns, get_infos=True))[:2]
    pivots = torch.diagonal(factors).abs()
    singular = (pivots <= len(b) * torch.finfo(b.dtype).eps * pivots.max()).any()
    factors = torch.where(singular, torch.eye(len(b), dtype=b.dtype, device=b.device), factors)
    right = (rows * b).unsqueeze(1)
    inner = _lu_solve(factors, order, right) if _lu_solve else torch.lu_solve(right, factors, order)
    inner = torch.where(singular, torch.full_like(right, float("nan")), inner)
    return columns * inner.squeeze(1), coded(singular, SINGULAR)


def _is_indefinite(matrix: Tensor) -> Tensor:
    """By the least eigenvalue of the matrix, scaled to similar size by congruence."""
    scale = _scale(matrix, 1).sqrt()
    levels = torch.linalg.eigvalsh(scale.unsqueeze(1) * ((matrix + matrix.transpose(0, 1)) / 2) * scale)
    found: Tensor = (levels < 0).any()
    return found


def _scale(matrix: Tensor, dim: int) -> Tensor:
    largest: Tensor = matrix.abs().max(dim)[0]
    return 1 / torch.where(largest > 0, largest, torch.ones_like(largest))


def solve_upper(r: Tensor, right: Tensor) -> Tensor:
    """Back substitution."""
    columns = right.unsqueeze(1)
    found: Tensor
    if _solve_triangular is None:
        found = torch.triangular_solve(columns, r, upper=True)[0]
    else:
        found = _solve_triangular(r, columns, upper=True)
    return found.squeeze(1)
