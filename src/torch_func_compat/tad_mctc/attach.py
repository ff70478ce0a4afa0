"""Functions whose gradient is known."""

from __future__ import annotations

from ..autograd.attach import attach_gradient

__all__ = ["attach_gradient"]
