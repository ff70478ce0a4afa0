"""Iterations for nonlinear equations: their problem, their state and their report."""

from __future__ import annotations

import sys
from typing import Any, ClassVar, NamedTuple, Sequence

import torch
from torch import Tensor

from ..autograd.internals import vjp
from .errors import NOT_FINITE, SOLVED, UNFINISHED, Status, coded
from .linear_solve import solve_numbers
from .systems import System, Tensors
from .vectors import Layout, anywhere, is_differentiable, norm, signs, values

__all__ = ["Info", "Iteration", "Nonlinear"]

# The residual that rounding may leave if it cannot be reduced, relative to the tolerance
SLACK = 1e3


class Info(NamedTuple):
    """The report of a ready iteration: the aux of ``has_aux=True``."""

    iterations: Tensor
    residual_norm: Tensor


class Nonlinear:
    """Equations at fixed parameters, in real vectors, without a graph."""

    def __init__(self, system: System, equations: Any, start: Sequence[Tensor], tensors: Tensors) -> None:
        self.layout: Layout = system.layout
        self._system, self._equations, self._tensors = system, equations, tensors
        self.start: Tensor = self.layout.ravel(start)

    def value(self, v: Tensor) -> Tensor:
        """The residual."""
        return self.layout.ravel(self._equations(self.layout.unravel(v), self._tensors))

    def measured(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The residual, and its change if the unknown and the parameters changed by about their own sizes.

        The residual is accurate to the machine precision times that change, whatever the units are.
        """
        n, moving = self.layout.count, [i for i, x in enumerate(self._tensors) if is_differentiable(x)]

        def residual(*operands: Tensor) -> tuple[Tensor, ...]:
            full = list(self._tensors)
            for i, x in zip(moving, operands[n:]):
                full[i] = x
            return tuple(self._equations(operands[:n], full))

        chosen = [self._tensors[i] for i in moving]
        found, pull = vjp(residual, *self.layout.unravel(v), *chosen)
        gradients = pull(tuple(self.layout.unravel(signs(v))))
        typical = torch.max(v.abs(), self.start.abs())
        parts = [self.layout.ravel(gradients[:n]) * typical]
        parts += [(g.abs() * x.abs()).to(v.dtype).reshape(-1) for g, x in zip(gradients[n:], chosen)]
        change = torch.cat(parts)
        scale = norm(torch.where(torch.isfinite(change), change, torch.zeros_like(change)))
        return self.layout.ravel(found), scale

    def newton_step(self, v: Tensor, residual: Tensor) -> tuple[Tensor, Status]:
        """The Jacobian's inverse times the residual."""
        return solve_numbers(self._system, residual, (*self.layout.unravel(v), *self._tensors))


class Iteration:
    """A ready solver of nonlinear equations.

    Within vmap it takes all samples at once. Samples that have converged no longer change.
    """

    tol: float | None
    max_iterations: int
    progress: bool

    def run(self, problem: Nonlinear) -> tuple[Tensor, Status]:
        """The solution and how it ended, for each sample of a vmap that is running."""
        raise NotImplementedError

    # The default tolerance, as a power of the machine precision
    power: ClassVar[float] = 0.75

    def tolerance(self, problem: Nonlinear) -> float:
        return float(problem.layout.eps**self.power) if self.tol is None else self.tol

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    def show(self, step: int, course: Course, last: bool = False) -> None:
        """A line on stderr, with `progress`."""
        if self.progress:
            codes = values(course.code).reshape(-1)
            done, largest = int((codes == SOLVED).sum()), float(values(course.size).max()) if codes.numel() else 0.0
            text = f"\r{type(self).__name__}: step {step}, {done} of {codes.numel()} solved, residual {largest:.2e}"
            print(text, end="\n" if last else "", file=sys.stderr, flush=True)


class Course:
    """The progress of each sample.

    A sample that seems to have converged is set aside until all others are. Then they are judged together, because the
    size that a residual may have costs a derivative of the residual for all samples. That size is also computed after
    1, 2, 4, 8, ... steps, since the first guess may tell little about it.
    """

    residual: Tensor
    size: Tensor
    code: Tensor
    iterations: Tensor

    def __init__(self, problem: Nonlinear, tol: float) -> None:
        self._problem, self._tol = problem, tol
        self.residual, self._scale = problem.measured(problem.start)
        self.size = norm(self.residual)
        self.code = self._judged()
        self.iterations = torch.zeros_like(self.code)
        self._aside = self._stalled = torch.zeros_like(self.code == UNFINISHED)
        self._steps = 0

    @property
    def active(self) -> Tensor:
        return (self.code == UNFINISHED) & ~self._aside & ~self._stalled

    @property
    def near(self) -> Tensor:
        """Whether the residual is as small as rounding allows."""
        return self.size <= SLACK * self._tol * self._scale

    def goes_on(self, v: Tensor) -> bool:
        """Whether there are more steps to take."""
        if self._steps and not self._steps & (self._steps - 1) and anywhere(self.active):
            self._scale = torch.where(self.active, self._problem.measured(v)[1], self._scale)
            self._aside = self._aside | (self.active & (self.size <= self._tol * self._scale))
        return anywhere(self.active) or (self.judge(v) and anywhere(self.active))

    def judge(self, v: Tensor) -> bool:
        """Judge the samples that were set aside, if there are any."""
        aside = self._aside & (self.code == UNFINISHED)
        if not anywhere(aside):
            return False
        self._scale = torch.where(aside, self._problem.measured(v)[1], self._scale)
        self.code = torch.where(aside, self._judged(), self.code)
        self.code = coded((self.code == UNFINISHED) & self._stalled & self.near, SOLVED, self.code)
        self._aside = torch.zeros_like(aside)
        return True

    def step(self, active: Tensor, residual: Tensor, stuck: Tensor) -> None:
        """Record a step of the active samples; for some, no step may reduce the residual any more."""
        self.residual, self.size = residual, norm(residual)
        self._steps += 1
        self.iterations = self.iterations + active.to(self.iterations.dtype)
        self.code = coded(active & ~torch.isfinite(self.size), NOT_FINITE, self.code)
        self._stalled = self._stalled | stuck
        self._aside = self._aside | stuck | (active & (self.size <= self._tol * self._scale))

    def fail(self, failed: Tensor, code: Tensor) -> None:
        self.code = torch.where(failed, code, self.code)

    def status(self) -> Status:
        return Status(self.code, self.iterations, self.size, self._tol * self._scale)

    def _judged(self) -> Tensor:
        unfinished = coded(self.size > self._tol * self._scale, UNFINISHED)
        return coded(~torch.isfinite(self.size), NOT_FINITE, unfinished)


def check_settings(name: str, tol: float | None, max_iterations: int) -> None:
    if tol is not None and not tol > 0:
        raise ValueError(f"expected tol of {name} to be positive, got {tol}")
    if max_iterations < 1:
        raise ValueError(f"expected max_iterations of {name} to be positive, got {max_iterations}")
