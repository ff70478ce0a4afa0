"""``jacrev`` and ``vmap`` of this library, and those of torch.func or functorch (None where there is neither)."""

from __future__ import annotations

from ..autograd import internals
from ..autograd.internals import jacrev, vmap

__all__ = ["fjacrev", "fvmap", "jacrev", "vmap"]  # noqa: F822 - by __getattr__


def __getattr__(name: str) -> object:
    if name in ("fjacrev", "fvmap"):
        return getattr(internals, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
