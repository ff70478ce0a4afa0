"""The Jacobian of a tensor that has been computed already."""

from __future__ import annotations

from ..autograd.rows import jac

__all__ = ["jac"]
