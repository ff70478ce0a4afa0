"""Batched Jacobians."""

from __future__ import annotations

from typing import Any, Callable

from .internals import jacrev, vmap

__all__ = ["bjacrev"]


def bjacrev(func: Callable[..., Any], argnums: int | tuple[int, ...] = 0, **kwargs: Any) -> Callable[..., Any]:
    """`jacrev` mapped over dimension 0 of every argument; `kwargs` are those of `jacrev`."""
    return vmap(jacrev(func, argnums, **kwargs), in_dims=0, out_dims=0)
