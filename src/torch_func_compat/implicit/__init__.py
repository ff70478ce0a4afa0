"""Implicit differentiation: derivatives of solutions from the equations that they solve.

`root`, `fixed_point` and `argmin` take a solution from any solver; `linear_solve` solves a linear system. Their
derivatives follow from the equations, to any order, in both modes and under every transform. Each derivative is a
linear solve, and nothing is kept of the iterations. `newton` and `anderson` are ready iterations; `dense`, `cg` and
`gmres` are ready solvers of linear systems. Failures raise an `ImplicitError`.
"""

from __future__ import annotations

from .anderson import anderson
from .dense import dense
from .errors import (
    ConvergenceError,
    ConvergenceWarning,
    ImplicitError,
    IndefiniteError,
    NotASolutionError,
    SingularError,
)
from .krylov import cg, gmres
from .linear_solve import linear_solve
from .newton import newton
from .roots import argmin, fixed_point, root

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "ImplicitError",
    "IndefiniteError",
    "NotASolutionError",
    "SingularError",
    "anderson",
    "argmin",
    "cg",
    "dense",
    "fixed_point",
    "gmres",
    "linear_solve",
    "newton",
    "root",
]
