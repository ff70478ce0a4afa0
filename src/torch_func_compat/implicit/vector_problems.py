"""The problem of the ready solvers: one linear system in real vectors, without a graph."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from .errors import Status
from .systems import System
from .vectors import Layout

# The number of unknowns up to which a matrix is assembled by default
DENSE = 512


class LinearProblem:
    """A matrix at fixed tensors, and a right-hand side."""

    def __init__(self, system: System, tensors: Sequence[Tensor], b: Tensor) -> None:
        self.system: System = system
        self._tensors = tensors
        self._operator: Any = None
        self._preconditioner: Any = None
        self.b = b
        self.size: int = system.layout.size
        self.eps: float = system.layout.eps
        self.symmetric: bool = system.options.symmetric
        self.definite: bool = system.options.definite
        self.has_preconditioner: bool = system.options.preconditioner is not None

    @property
    def layout(self) -> Layout:
        return self.system.layout

    def tolerance(self) -> float:
        """The residual, relative to the right-hand side, that iterations aim at."""
        return float(self.eps**0.9)

    def matvec(self, v: Tensor) -> Tensor:
        if self._operator is None:
            self._operator = self.system.operator(self._tensors)
        return self.layout.ravel(self._operator(self.layout.unravel(v)))

    def precondition(self, v: Tensor) -> Tensor:
        if not self.has_preconditioner:
            return v
        if self._preconditioner is None:
            self._preconditioner = self.system.precondition(self._tensors)
        return self.layout.ravel(self._preconditioner(self.layout.unravel(v)))

    def matrix(self) -> Tensor:
        return self.system.matrix(self._tensors)


class LinearSolver:
    """A ready solver of linear systems."""

    def run(self, problem: LinearProblem) -> tuple[Tensor, Status]:
        """The solution and how it ended, for each sample of a vmap that is running."""
        raise NotImplementedError

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


def state(code: Tensor, iterations: Any, norm: Tensor, bound: Any) -> Status:
    """A status, of tensors."""
    like = norm.detach()
    if not isinstance(iterations, Tensor):
        iterations = torch.full((), iterations, dtype=torch.int64, device=like.device)
    if not isinstance(bound, Tensor):
        bound = torch.full((), bound, dtype=like.dtype, device=like.device)
    return Status(code, iterations, norm, bound)
