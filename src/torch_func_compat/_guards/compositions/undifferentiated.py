"""Special functions that torch takes for constant: it has no derivative of them, and raises no error."""

from __future__ import annotations

import functools
from typing import Any, Callable

import torch
from torch import Tensor

from ..exits import UndifferentiatedError
from .composition import Composition
from .special_functions import sine_quotient

# (k, x, P_k, P_{k-1}) -> P_{k+1}; https://dlmf.nist.gov/18.9
_Recurrence = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def _chebyshev(k: int, x: Tensor, p: Tensor, before: Tensor) -> Tensor:
    return 2 * x * p - before


def _polynomial(first: Callable[[Tensor], Tensor], recurrence: _Recurrence = _chebyshev) -> Callable[..., Any]:
    """An orthogonal polynomial by its recurrence, from P_0 = 1 and P_1."""

    def compose(input: Any, n: Any, *, out: Any = None) -> Any:
        if not isinstance(input, Tensor) or not isinstance(n, int) or out is not None:
            return NotImplemented
        if n < 1:
            return torch.ones_like(input) if n == 0 else torch.zeros_like(input)
        before, p = torch.ones_like(input), first(input)
        for k in range(1, n):
            before, p = p, recurrence(k, input, p, before)
        return p

    return compose


def _shifted(compose: Callable[..., Any]) -> Callable[..., Any]:
    return lambda input, n, *, out=None: compose(2 * input - 1, n, out=out)


_CHEBYSHEV = {
    "t": _polynomial(lambda x: x),
    "u": _polynomial(lambda x: 2 * x),
    "v": _polynomial(lambda x: 2 * x - 1),
    "w": _polynomial(lambda x: 2 * x + 1),
}
_POLYNOMIALS = {
    **{f"chebyshev_polynomial_{kind}": compose for kind, compose in _CHEBYSHEV.items()},
    **{f"shifted_chebyshev_polynomial_{kind}": _shifted(compose) for kind, compose in _CHEBYSHEV.items()},
    "hermite_polynomial_h": _polynomial(lambda x: 2 * x, lambda k, x, p, before: 2 * x * p - 2 * k * before),
    "hermite_polynomial_he": _polynomial(lambda x: x, lambda k, x, p, before: x * p - k * before),
    "laguerre_polynomial_l": _polynomial(
        lambda x: 1 - x, lambda k, x, p, before: ((2 * k + 1 - x) * p - k * before) / (k + 1)
    ),
    "legendre_polynomial_p": _polynomial(
        lambda x: x, lambda k, x, p, before: ((2 * k + 1) * x * p - k * before) / (k + 1)
    ),
}


def _spherical_bessel_j0(z: Tensor, *, out: Any = None) -> Any:
    return NotImplemented if out is not None else sine_quotient(z)


def _modified_bessel(order: int) -> Callable[..., Any]:
    function = getattr(torch.special, f"i{order}", None) if hasattr(torch, "special") else None
    return lambda input, *, out=None: NotImplemented if function is None or out is not None else function(input)


def _has_tangent(x: Tensor) -> bool:
    level = getattr(torch.autograd.forward_ad, "_current_level", -1)
    return level >= 0 and torch.autograd.forward_ad.unpack_dual(x, level=level).tangent is not None


def _refused(name: str) -> Callable[..., Any]:
    """Torch's own function where it has a derivative, or is not differentiated; else an error."""
    function = getattr(getattr(torch, "special", None), name, None)

    def compose(*args: Any, **kwargs: Any) -> Any:
        if function is None:
            return NotImplemented
        with torch._C.DisableTorchFunction():  # type: ignore[attr-defined,unused-ignore]
            result = function(*args, **kwargs)
            tensors = [x for x in args if isinstance(x, Tensor)]
            lost = any(x.requires_grad for x in tensors) and not result.requires_grad and torch.is_grad_enabled()
            if lost or (any(map(_has_tangent, tensors)) and not _has_tangent(result)):
                raise UndifferentiatedError(
                    f"torch has no derivative of {name}: the derivative would be zero. Give the operation a backward "
                    f"of its own with torch_func_compat.Function, or detach() its input if zero is meant"
                )
        return result

    return compose


_COMPOSED = {
    **_POLYNOMIALS,
    "spherical_bessel_j0": _spherical_bessel_j0,
    "modified_bessel_i0": _modified_bessel(0),
    "modified_bessel_i1": _modified_bessel(1),
}
_REFUSED = (
    *("airy_ai", "bessel_j0", "bessel_j1", "bessel_y0", "bessel_y1", "modified_bessel_k0", "modified_bessel_k1"),
    *("scaled_modified_bessel_k0", "scaled_modified_bessel_k1"),
)
_row = functools.partial(
    Composition, nodes=(), order=1, reason="torch treats it as a constant (measured on torch 1.11 to 2.15)"
)

ROWS: tuple[Composition, ...] = (
    *(_row((f"special.{name}", f"ops.aten.special_{name}"), compose=compose) for name, compose in _COMPOSED.items()),
    *(_row((f"special.{name}", f"ops.aten.special_{name}"), compose=_refused(name)) for name in _REFUSED),
)
