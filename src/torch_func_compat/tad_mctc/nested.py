"""Forward-mode rules that nest."""

from __future__ import annotations

from ..autograd.nested import nested_jvp

__all__ = ["nested_jvp"]
