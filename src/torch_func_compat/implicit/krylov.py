"""Krylov methods: solve linear systems by products with their matrix.

Each is written for one system. Under vmap there are many systems, and all take part in every product until the last has
converged. Systems that have converged no longer change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dense import solve_upper
from .errors import INDEFINITE, NOT_FINITE, SINGULAR, UNFINISHED, Status, coded
from .vector_problems import LinearProblem, LinearSolver, state
from .vectors import anywhere, divide, dot, norm

__all__ = ["cg", "gmres"]


class cg(LinearSolver):
    """Conjugate gradients, for a positive definite matrix.

    Parameters
    ----------
    tol : float, optional
        Norm of the residual relative to that of the right-hand side; by default ``eps**0.9``, which is 8e-15 for
        float64 and 6e-7 for float32, or what rounding allows.
    max_iterations : int, optional
        By default ten for each unknown, and no more than 10000.

    Notes
    -----
    Cost: a product with the matrix and one with the preconditioner in each iteration; memory for four vectors. A matrix
    that is not positive definite is an error as soon as a direction of negative curvature is met. M. R. Hestenes and E.
    Stiefel, J. Res. Natl. Bur. Stand. 49, 409 (1952).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.implicit import cg, linear_solve
    >>> diagonal = torch.tensor([2.0, 4.0])
    >>> linear_solve(lambda v: diagonal * v, torch.ones(2), solve=cg(tol=1e-6), symmetric=True)
    tensor([0.5000, 0.2500])
    """

    def __init__(self, *, tol: float | None = None, max_iterations: int | None = None) -> None:
        self.tol: float | None = tol
        self.max_iterations: int | None = max_iterations

    def run(self, problem: LinearProblem) -> tuple[Tensor, Status]:
        b = problem.b
        eps = problem.eps
        aim = (problem.tolerance() if self.tol is None else self.tol) * norm(b)
        x = torch.zeros_like(b)
        r, p = b, problem.precondition(b)
        rz = dot(r, p)
        code = _judged(norm(r), aim)
        iterations = torch.zeros_like(code)
        bound = aim
        largest = torch.zeros_like(aim)  # the largest estimate of the norm of the matrix
        for _ in range(_limit(self.max_iterations, problem.size)):
            if not anywhere(code == UNFINISHED):
                break
            ap = problem.matvec(p)
            curvature, flat = dot(p, ap), eps * norm(p) * norm(ap)
            active = code == UNFINISHED
            code = coded(active & (curvature.abs() <= flat), SINGULAR, code)
            # the preconditioner has to be positive definite, too
            code = coded(active & ((curvature < -flat) | (rz < 0)), INDEFINITE, code)
            active = code == UNFINISHED
            alpha = torch.where(active, divide(rz, curvature), torch.zeros_like(rz))
            x, r = x + alpha * p, r - alpha * ap
            largest = torch.max(largest, divide(norm(ap), norm(p)))
            z = problem.precondition(r)
            before, rz = rz, torch.where(active, dot(r, z), rz)
            p = torch.where(active, z + divide(rz, before) * p, p)
            bound = _bound(problem, aim, largest * norm(x))
            code = torch.where(active, _judged(norm(r), bound), code)
            iterations = iterations + active.to(iterations.dtype)
        return x, state(code, iterations, norm(r), bound)


class gmres(LinearSolver):
    """Generalized minimal residuals, restarted, for any matrix that is not singular.

    Parameters
    ----------
    restart : int
        Vectors that are kept, after which it begins anew.
    tol : float, optional
        As for `cg`.
    max_iterations : int, optional
        Products with the matrix; by default ten for each unknown, and no more than 10000.

    Notes
    -----
    Cost: a product with the matrix and one with the preconditioner in each iteration, and memory for twice `restart`
    vectors. It is preconditioned from the right, so that the residual is the true one. Y. Saad and M. H. Schultz, SIAM
    J. Sci. Stat. Comput. 7, 856 (1986).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.implicit import gmres, linear_solve
    >>> matrix = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    >>> linear_solve(lambda v: matrix @ v, torch.tensor([2.0, 4.0]), solve=gmres()).round()
    tensor([1., 1.])
    """

    def __init__(self, *, restart: int = 30, tol: float | None = None, max_iterations: int | None = None) -> None:
        if restart < 1:
            raise ValueError(f"expected restart to be positive, got {restart}")
        self.restart: int = restart
        self.tol: float | None = tol
        self.max_iterations: int | None = max_iterations

    def run(self, problem: LinearProblem) -> tuple[Tensor, Status]:
        b = problem.b
        aim = (problem.tolerance() if self.tol is None else self.tol) * norm(b)
        x, r, bound = torch.zeros_like(b), b, aim
        code = _judged(norm(r), aim)
        iterations = torch.zeros_like(code)
        stalled = torch.zeros_like(code == UNFINISHED)
        largest = torch.zeros_like(aim)
        left = _limit(self.max_iterations, problem.size)
        while left > 0:
            active = (code == UNFINISHED) & ~stalled
            if not anywhere(active):
                break
            cycle = _Cycle(problem, r, active, bound, min(self.restart, left, problem.size))
            left -= max(cycle.steps, 1)
            iterations = iterations + cycle.used
            largest = torch.max(largest, cycle.largest)
            before = norm(r)
            x = torch.where(active, x + cycle.correction(), x)
            r = torch.where(active, b - problem.matvec(x), r)
            bound = _bound(problem, aim, largest * norm(x))
            code = torch.where(active, _judged(norm(r), bound), code)
            stuck = active & (code == UNFINISHED) & ~(norm(r) < 0.999999 * before)
            # a Krylov space that no longer grows and does not contain the solution
            code = coded(stuck & cycle.closed, SINGULAR, code)
            stalled = stalled | stuck
        return x, state(code, iterations, norm(r), bound)


class _Cycle:
    """Minimize a residual over its Krylov space, as far as needed."""

    def __init__(self, problem: LinearProblem, r: Tensor, active: Tensor, bound: Tensor, limit: int) -> None:
        eps = problem.eps
        beta = norm(r)
        self.steps = 0
        self.used = torch.zeros_like(active, dtype=torch.int64)
        self.largest = torch.zeros_like(beta)
        self.closed = torch.zeros_like(active)
        self._none = torch.zeros_like(r)
        self._directions: list[Tensor] = []
        self._weights = self._none
        basis = [divide(r, beta)]
        columns: list[Tensor] = []
        going = active & (beta > bound)
        while self.steps < limit and anywhere(going):
            direction = problem.precondition(basis[-1])
            w = problem.matvec(direction)
            size = norm(w)
            self.largest = torch.max(self.largest, divide(size, norm(direction)))
            vectors = torch.stack(basis)
            heights = torch.zeros_like(vectors @ w)
            for _ in range(2):  # twice, for rounding
                more = vectors @ w
                w, heights = w - more @ vectors, heights + more
            height = norm(w)
            height = torch.where(height > 8 * eps * size, height, torch.zeros_like(height))
            self.closed = self.closed | (going & (height == 0)) | (len(basis) >= problem.size)
            column = torch.cat([heights, height.unsqueeze(0)])
            # a sample that has converged no longer changes
            columns.append(torch.where(going, column, torch.zeros_like(column)))
            basis.append(divide(w, height))
            self._directions.append(direction)
            self.steps += 1
            self.used = self.used + going.to(self.used.dtype)
            self._weights, left = _least_squares(columns, beta)
            going = going & (left > bound) & (height > 0)

    def correction(self) -> Tensor:
        if not self._directions:
            return self._none
        return self._weights @ torch.stack(self._directions)


def _least_squares(columns: list[Tensor], beta: Tensor) -> tuple[Tensor, Tensor]:
    """The y that minimises ``|beta e - H y|``, and the minimum."""
    rows = len(columns) + 1
    padded = [torch.cat([c, torch.zeros_like(c[:1]).expand(rows - len(c))]) for c in columns]
    h = torch.stack(padded, 1)
    q, r = torch.linalg.qr(h)
    pivots = torch.diagonal(r)
    zero = pivots.abs() <= 8 * rows * torch.finfo(beta.dtype).eps * pivots.abs().max()
    unit = torch.eye(rows, dtype=beta.dtype, device=beta.device)[0]
    r = r + torch.diag(zero.to(beta.dtype))
    y = solve_upper(r, torch.where(zero, torch.zeros_like(pivots), beta * q[0]))
    return y, norm(beta * unit - h @ y)


def _limit(chosen: int | None, size: int) -> int:
    return min(max(10 * size, 50), 10000) if chosen is None else chosen


def _bound(problem: LinearProblem, aim: Tensor, size: Tensor) -> Tensor:
    """The aim, or the residual that rounding allows; no bound for a solution as large as those of singular systems."""
    limit: Tensor = torch.max(aim, torch.min(16 * problem.eps * size, problem.eps**0.5 * norm(problem.b)))
    return limit


def _judged(size: Tensor, bound: Tensor) -> Tensor:
    """Solved, unfinished or lost."""
    return coded(~torch.isfinite(size), NOT_FINITE, coded(size > bound, UNFINISHED))
