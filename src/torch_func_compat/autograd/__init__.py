"""The transforms and the switchboard behind them."""

from __future__ import annotations

from .._fallback import FallbackWarning
from .internals import (
    available_backends,
    explain,
    get_backend,
    get_fallback,
    grad,
    grad_and_value,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    set_backend,
    set_fallback,
    unavailable_backends,
    use_backend,
    use_fallback,
    vjp,
    vmap,
)

__all__ = [
    "FallbackWarning",
    "available_backends",
    "explain",
    "get_backend",
    "get_fallback",
    "grad",
    "grad_and_value",
    "hessian",
    "jacfwd",
    "jacrev",
    "jvp",
    "set_backend",
    "set_fallback",
    "unavailable_backends",
    "use_backend",
    "use_fallback",
    "vjp",
    "vmap",
]
