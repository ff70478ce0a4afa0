"""Newton's method."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .errors import SOLVED, UNFINISHED, Status
from .iterations import Course, Iteration, Nonlinear, check_settings
from .vectors import anywhere, norm

__all__ = ["newton"]

_HALVINGS = 30


class newton(Iteration):
    """Newton's method, with steps that are halved until they reduce the residual.

    The linear systems of the steps are solved like those of the derivatives: see `linear` of `root`.

    Parameters
    ----------
    tol : float, optional
        Norm of the residual, relative to the change of the residual if the unknown and the parameters changed by their
        own sizes; by default ``eps**0.9``, which is 8e-15 for float64 and 6e-7 for float32. Where rounding keeps the
        residual from becoming smaller, a thousand times as much is accepted.
    max_iterations : int
        Steps.
    progress : bool
        Show the progress on stderr.

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

    power: ClassVar[float] = 0.9  # Newton converges quadratically, so the last step may as well be accurate

    def __init__(self, *, tol: float | None = None, max_iterations: int = 50, progress: bool = False) -> None:
        check_settings("newton", tol, max_iterations)
        self.tol: float | None = tol
        self.max_iterations: int = max_iterations
        self.progress: bool = progress

    def run(self, problem: Nonlinear) -> tuple[Tensor, Status]:
        v, course = problem.start, Course(problem, self.tolerance(problem))
        step = 0
        while course.goes_on(v) and step < self.max_iterations:
            self.show(step, course)
            direction, status = problem.newton_step(v, course.residual)
            failed = (status.code != SOLVED) & (status.code != UNFINISHED)  # an approximate solution is a step, too
            course.fail(course.active & failed, status.code)
            active, length = course.active, torch.ones_like(course.size)
            for _ in range(_HALVINGS):
                there = v - length * direction
                residual = problem.value(there)
                better = norm(residual) < (1 - 1e-4 * length) * course.size
                if not anywhere(active & ~better & ~course.near):
                    break
                length = torch.where(better, length, length / 2)
            moved = active & better
            v = torch.where(moved, there, v)
            course.step(active, torch.where(moved, residual, course.residual), active & ~better)
            step += 1
        course.judge(v)
        self.show(step, course, last=True)
        return v, course.status()
