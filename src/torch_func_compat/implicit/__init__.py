"""Derivatives of solutions, by what they solve."""

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
