"""Fixed-point iteration with Anderson's acceleration."""

from __future__ import annotations

import torch
from torch import Tensor

from .dense import solve_upper
from .errors import SOLVED, UNFINISHED, Status, coded
from .iterations import SLACK, Iteration, Nonlinear, check_settings, judged
from .vectors import anywhere, divide, norm

__all__ = ["anderson"]

_PATIENCE = 10


class anderson(Iteration):
    """Fixed-point iteration, accelerated by what the last steps have shown.

    Parameters
    ----------
    history : int
        Steps that are looked back to; 0 is the plain iteration.
    mixing : float
        Fraction of each step that is taken. Less than 1 for a step that overshoots.
    tol : float, optional
        As for `newton`; by default ``eps**0.75``, which is 2e-12 for float64 and 6e-6 for float32.
    max_iterations, progress
        As for `newton`.

    Notes
    -----
    Cost of an iteration: one evaluation of the step; a derivative of it in the first, in each tenth and where
    the tolerance seems to be met. Memory for twice `history` vectors. H. F. Walker and P. Ni, SIAM J. Numer. Anal. 49,
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
        self.history, self.mixing = history, mixing
        self.tol, self.max_iterations, self.progress = tol, max_iterations, progress

    def run(self, problem: Nonlinear) -> tuple[Tensor, Status]:
        tol = self.tolerance(problem)
        v = problem.start
        residual, scale = problem.measured(v)
        size = norm(residual)
        code = judged(coded(torch.ones_like(size, dtype=torch.bool), UNFINISHED), size, tol * scale)
        iterations = torch.zeros_like(code)
        best, age = size, torch.zeros_like(code)
        moves: list[Tensor] = []
        changes: list[Tensor] = []
        for step in range(1, self.max_iterations + 1):
            self.show(step - 1, code, size)
            active = code == UNFINISHED
            if not anywhere(active):
                break
            there = torch.where(active, _next(v, residual, moves, changes, self.mixing), v)
            new = torch.where(active, problem.value(there), residual)
            if self.history:
                moves, changes = [*moves, there - v][-self.history :], [*changes, new - residual][-self.history :]
            v, residual, size = there, new, norm(new)
            iterations = iterations + active.to(iterations.dtype)
            if step % _PATIENCE == 0 or anywhere(active & (size <= tol * scale)):
                scale = torch.where(active, problem.measured(v)[1], scale)
            code = judged(code, size, tol * scale)
            better = size < 0.9 * best
            best, age = torch.where(better, size, best), torch.where(better, torch.zeros_like(age), age + 1)
            stuck = (code == UNFINISHED) & (age >= _PATIENCE) & (size <= SLACK * tol * scale)
            code = coded(stuck, SOLVED, code)
        self.show(int(step), code, size, last=True)
        return v, Status(code, iterations, size, tol * scale)


def _next(v: Tensor, residual: Tensor, moves: list[Tensor], changes: list[Tensor], mixing: float) -> Tensor:
    """The step from the combination of the last points whose residual would be least, were it linear."""
    if not changes:
        return v + mixing * residual
    lengths = [norm(change) for change in changes]
    columns = torch.stack([divide(change, length) for change, length in zip(changes, lengths)], 1)
    count = len(changes)
    ridge = torch.finfo(v.dtype).eps ** 0.5 * torch.eye(count, dtype=v.dtype, device=v.device)
    q, r = torch.linalg.qr(torch.cat([columns, ridge]))
    weights = solve_upper(r, q[: len(v)].transpose(0, 1) @ residual)
    weights = torch.stack([divide(weight, length) for weight, length in zip(weights.unbind(0), lengths)])
    # what stood still has no say
    weights = torch.where(torch.isfinite(weights), weights, torch.zeros_like(weights))
    point = v - torch.stack(moves, 1) @ weights
    return point + mixing * (residual - torch.stack(changes, 1) @ weights)
