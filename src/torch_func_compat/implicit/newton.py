"""Newton's method."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import SOLVED, UNFINISHED, Status, coded
from .iterations import SLACK, Iteration, Nonlinear, check_settings, judged
from .vectors import anywhere, norm

__all__ = ["newton"]

_HALVINGS = 30


class newton(Iteration):
    """Newton's method, with steps that are halved until they reduce the residual.

    The linear systems of the steps are solved as those of the derivatives are: see `linear` of `root`.

    Parameters
    ----------
    tol : float, optional
        Norm of the residual, relative to what changes of unknown and parameters by their own size would make of it; by
        default ``eps**0.9``, which is 8e-15 for float64 and 6e-7 for float32. A residual that rounding does not let
        become smaller is taken if it is less than a thousand times that.
    max_iterations : int
        Steps.
    progress : bool
        Show on stderr how far it is.

    Notes
    -----
    Cost of a step: the residual, its assembled Jacobian and a factorisation (or products with it, for an iterative
    `linear`), and the residual once more for each time that the step is halved. Where the tolerance seems to be met, a
    derivative of the residual. Nothing is recorded.

    Examples
    --------
    >>> import torch
    >>> from torch_func_compat.implicit import newton, root
    >>> square_root = root(lambda z, a: z**2 - a, newton(max_iterations=20))
    >>> square_root(torch.tensor(1.0), torch.tensor(2.0))
    tensor(1.4142)
    """

    power = 0.9  # the last step may as well be a good one

    def __init__(self, *, tol: float | None = None, max_iterations: int = 50, progress: bool = False) -> None:
        check_settings("newton", tol, max_iterations)
        self.tol, self.max_iterations, self.progress = tol, max_iterations, progress

    def run(self, problem: Nonlinear) -> tuple[Tensor, Status]:
        tol = self.tolerance(problem)
        v = problem.start
        residual, scale = problem.measured(v)
        size = norm(residual)
        code = judged(coded(torch.ones_like(size, dtype=torch.bool), UNFINISHED), size, tol * scale)
        stalled = torch.zeros_like(code == UNFINISHED)
        iterations = torch.zeros_like(code)
        for step in range(self.max_iterations):
            self.show(step, code, size)
            active = (code == UNFINISHED) & ~stalled
            if not anywhere(active):
                break
            direction, status = problem.newton_step(v, residual)
            failed = (status.code != SOLVED) & (status.code != UNFINISHED)  # half a solution is a step, too
            code = torch.where(active & failed, status.code, code)
            active = active & ~failed
            length = torch.ones_like(size)
            for _ in range(_HALVINGS):
                there = v - length * direction
                new = problem.value(there)
                better = norm(new) < (1 - 1e-4 * length) * size
                if not anywhere(active & ~better & (size > SLACK * tol * scale)):
                    break
                length = torch.where(better, length, length / 2)
            moved = active & better
            v, residual = torch.where(moved, there, v), torch.where(moved, new, residual)
            size, stuck = norm(residual), active & ~better
            iterations = iterations + active.to(iterations.dtype)
            if anywhere(stuck | (active & (size <= tol * scale))):
                scale = torch.where(active, problem.measured(v)[1], scale)
                code = judged(code, size, tol * scale)
                code = coded(stuck & (code == UNFINISHED) & (size <= SLACK * tol * scale), SOLVED, code)
            stalled = stalled | stuck
        self.show(self.max_iterations if anywhere(~stalled & (code == UNFINISHED)) else step, code, size, last=True)
        return v, Status(code, iterations, size, tol * scale)
