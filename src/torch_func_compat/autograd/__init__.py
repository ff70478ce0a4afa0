"""The transforms and the switchboard behind them."""

from __future__ import annotations

from .internals import (
    available_backends,
    get_backend,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    set_backend,
    unavailable_backends,
    use_backend,
    vjp,
    vmap,
)

__all__ = [
    "available_backends",
    "get_backend",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "set_backend",
    "unavailable_backends",
    "use_backend",
    "vjp",
    "vmap",
]
