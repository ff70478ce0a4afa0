"""Fixed-point iteration with Anderson's acceleration."""

from __future__ import annotations

import torch
from torch import Tensor

from .dense import solve_upper
from .errors import Status
from .iterations import Course, Iteration, Nonlinear, check_settings
from .vectors import divide, norm

__all__ = ["anderson"]

_PATIENCE = 10


class anderson(Iteration):
    """Fixed-point iteration, accelerated with the last steps.

    Parameters
    ----------
    history : int
        The number of former steps that are combined; 0 is the plain iteration.
    mixing : float
        Fraction of each step that is taken. Less than 1 for a step that overshoots.
    tol : float, optional
        As for `newton`; by default ``eps**0.75``, which is 2e-12 for float64 and 6e-6 for float32.
    max_iterations, progress
        As for `newton`.

    Notes
    -----
    Cost of an iteration: one evaluation of the step; a derivative of it after 1, 2, 4, 8, ... of them and where the
    tolerance seems to be met. Memory for twice `history` vectors. H. F. Walker and P. Ni, SIAM J. Numer. Anal. 49,
    1715 (2011).

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.implicit import anderson, fixed_point
    >>> cosine = fixed_point(lambda z, a: torch.cos(a * z), anderson(history=3))
    >>> cosine(torch.tensor(1.0), torch.tensor(1.0))
    tensor(0.7391)
    """

    def __init__(
        self,
        *,
        history: int = 5,
        mixing: float = 1.0,
        tol: float | None = None,
        max_iterations: int = 200,
        progress: bool = False,
    ) -> None:
        check_settings("anderson", tol, max_iterations)
        if history < 0:
            raise ValueError(f"expected history of anderson not to be negative, got {history}")
        self.history: int = history
        self.mixing: float = mixing
        self.tol: float | None = tol
        self.max_iterations: int = max_iterations
        self.progress: bool = progress

    def run(self, problem: Nonlinear) -> tuple[Tensor, Status]:
        v, course = problem.start, Course(problem, self.tolerance(problem))
        best, age = course.size, torch.zeros_like(course.code)
        moves: list[Tensor] = []
        changes: list[Tensor] = []
        step = 0
        while course.goes_on(v) and step < self.max_iterations:
            self.show(step, course)
            active, before = course.active, course.residual
            there = torch.where(active, _next(v, before, moves, changes, self.mixing), v)
            residual = torch.where(active, problem.value(there), before)
            if self.history:
                moves, changes = [*moves, there - v][-self.history :], [*changes, residual - before][-self.history :]
            v, size = there, norm(residual)
            better = size < 0.9 * best
            best, age = torch.where(better, size, best), torch.where(better, torch.zeros_like(age), age + 1)
            course.step(active, residual, active & (age >= _PATIENCE) & course.near)
            step += 1
        course.judge(v)
        self.show(step, course, last=True)
        return v, course.status()


def _next(v: Tensor, residual: Tensor, moves: list[Tensor], changes: list[Tensor], mixing: float) -> Tensor:
    """The step from the combination of the last points that has the least residual in a linear model."""
    if not changes:
        return v + mixing * residual
    lengths = [norm(change) for change in changes]
    columns = torch.stack([divide(change, length) for change, length in zip(changes, lengths)], 1)
    count = len(changes)
    ridge = torch.finfo(v.dtype).eps ** 0.5 * torch.eye(count, dtype=v.dtype, device=v.device)
    q, r = torch.linalg.qr(torch.cat([columns, ridge]))
    weights = solve_upper(r, q[: len(v)].transpose(0, 1) @ residual)
    weights = torch.stack([divide(weight, length) for weight, length in zip(weights.unbind(0), lengths)])
    # samples that stood still do not count
    weights = torch.where(torch.isfinite(weights), weights, torch.zeros_like(weights))
    point = v - torch.stack(moves, 1) @ weights
    return point + mixing * (residual - torch.stack(changes, 1) @ weights)
