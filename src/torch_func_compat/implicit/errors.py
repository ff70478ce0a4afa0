"""Failures, and how they are handled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._torch.callers import warn_user
from .vectors import values

__all__ = [
    "ConvergenceError",
    "ConvergenceWarning",
    "ImplicitError",
    "IndefiniteError",
    "NotASolutionError",
    "SingularError",
]

MODES = ("raise", "warn", "nan")


class ImplicitError(RuntimeError):
    """A solution or its derivative cannot be computed; the subclasses say why."""


class ConvergenceError(ImplicitError):
    """An iteration did not reach its tolerance."""


class NotASolutionError(ImplicitError):
    """A solver returned a point that does not solve its problem."""


class SingularError(ImplicitError):
    """A linear system has no solution, or more than one."""


class IndefiniteError(ImplicitError):
    """A matrix that should be positive definite is not."""


class ConvergenceWarning(UserWarning):
    """Takes the place of an `ImplicitError` with ``on_failure='warn'``."""


class Status(NamedTuple):
    """How a solver ended, for each sample of a batch."""

    code: Tensor  # SOLVED or one of the rows of REASONS
    iterations: Tensor
    norm: Tensor  # of the residual
    bound: Tensor  # which the norm should not exceed


SOLVED, UNFINISHED, WRONG, SINGULAR, INDEFINITE, NOT_FINITE = range(6)
_REASONS = {
    UNFINISHED: (ConvergenceError, "did not converge", "Give it more iterations, a better start or a larger tolerance"),
    WRONG: (
        NotASolutionError,
        "returned a point that is no solution, so that the derivative would mean nothing",
        "Let it converge further, or give a larger tol",
    ),
    SINGULAR: (
        SingularError,
        "met a singular matrix",
        "Remove what is undetermined (a shift, a rotation, a redundant unknown), or add an equation for it",
    ),
    NOT_FINITE: (
        ConvergenceError,
        "met numbers that are not finite",
        "Give it a better start, or look for an overflow or a missing derivative",
    ),
    INDEFINITE: (
        IndefiniteError,
        "met a matrix that is not positive definite",
        "A minimum has a positive definite Hessian: check the point. For a matrix that is meant to be indefinite use "
        "gmres or dense",
    ),
}


def coded(flag: Tensor, code: int, otherwise: int | Tensor = SOLVED) -> Tensor:
    """`code` where the flag is set."""
    if not isinstance(otherwise, Tensor):
        otherwise = torch.full((), otherwise, dtype=torch.int64, device=flag.device)
    return torch.where(flag, torch.full_like(otherwise, code), otherwise)


def check_mode(on_failure: str) -> None:
    """Raise for an unknown `on_failure`."""
    if on_failure not in MODES:
        raise ValueError(f"expected on_failure to be one of {MODES}, got {on_failure!r}")


def settle(status: Status, vector: Tensor, name: str, on_failure: str) -> Tensor:
    """The solution; one that failed is handled as `on_failure` says."""
    codes = values(status.code).reshape(-1)
    worst = int(codes.max()) if codes.numel() else SOLVED
    if worst == SOLVED:
        return vector
    if on_failure == "nan":
        return torch.where(status.code == SOLVED, vector, torch.full_like(vector, float("nan")))
    error, what, advice = _REASONS[worst]
    iterations, norm, bound = (values(x).reshape(-1) for x in (status.iterations, status.norm, status.bound))
    spread = [x.expand(codes.shape) if x.numel() == 1 else x for x in (iterations, norm, bound)]
    if all(x.shape == codes.shape for x in spread):
        first = int((codes == worst).to(torch.int64).argmax())
        iterations, norm, bound = (x[first : first + 1] for x in spread)
    among = f" in {int((codes != SOLVED).sum())} of {codes.numel()} samples" if codes.numel() > 1 else ""
    steps = int(iterations.max())
    after = f", after {steps} iterations" if steps >= 0 else ""
    text = (
        f"{name} {what}{among}: residual norm {float(norm.max()):.3g}, expected at most {float(bound.max()):.3g}"
        f"{after}. {advice}"
    )
    if on_failure == "raise":
        raise error(f"{text}, or choose on_failure='nan'")
    warn_user(text, ConvergenceWarning)
    return vector
