"""Special functions."""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
from torch import Tensor

from .composition import Composition


def _over_angles(input: Tensor, power: int, scaled: bool) -> Tensor:
    """exp(x cos t) cos(t)**power, without exp(abs(x)) if `scaled`, averaged over t (https://dlmf.nist.gov/10.32.E3).

    The midpoint rule is exact to rounding up to where it overflows.
    """
    cosines = ((torch.arange(128, dtype=input.dtype, device=input.device) + 0.5) * (math.pi / 128)).cos()
    exponents = input.unsqueeze(-1) * cosines
    if scaled:
        exponents = exponents - input.abs().unsqueeze(-1)
    return (exponents.exp() * cosines**power).mean(-1)


def _bessel(power: int, scaled: bool = False) -> Callable[..., Any]:
    def compose(input: Any, *, out: Any = None) -> Any:
        is_real = isinstance(input, Tensor) and input.is_floating_point()
        return _over_angles(input, power, scaled) if is_real and out is None else NotImplemented

    return compose


# sin(z) / z as a polynomial of z * z
_SINC = [(-1.0) ** k / math.factorial(2 * k + 1) for k in range(10)]


def _sinc(input: Any, *, out: Any = None) -> Any:
    """A polynomial near zero, where torch's formula for the derivative is 0 / 0."""
    if not isinstance(input, Tensor) or not (input.is_floating_point() or input.is_complex()) or out is not None:
        return NotImplemented
    z = input * math.pi
    is_small = z.detach().abs() < 1
    square = torch.where(is_small, z, torch.zeros_like(z)).square()
    polynomial = torch.full_like(z, _SINC[-1])
    for coefficient in _SINC[-2::-1]:
        polynomial = polynomial * square + coefficient
    far = torch.where(is_small, torch.ones_like(z), z)
    return torch.where(is_small, polynomial, far.sin() / far)


ROWS: tuple[Composition, ...] = (
    Composition(
        ("sinc", "special.sinc", "Tensor.sinc", "ops.aten.sinc", "ops.aten.special_sinc"),
        ("SincBackward",),
        2,
        _sinc,
        "the second derivative at zero is zero or not a number, and further ones lose digits nearby (measured on torch "
        "1.8 to 2.15)",
    ),
    Composition(
        ("i0", "special.i0", "Tensor.i0"),
        ("NotImplemented", "I0Backward"),
        1,
        _bessel(0),
        "it has no derivative (measured on torch 1.8)",
        (1, 11),
    ),
    Composition(
        ("i0", "special.i0", "Tensor.i0", "ops.aten.i0", "ops.aten.special_i0"),
        ("I0Backward",),
        4,
        _bessel(0),
        "the fourth derivative at zero is zero, and loses digits nearby: see i1",
    ),
    Composition(
        ("special.i1", "ops.aten.special_i1"),
        ("SpecialI1Backward",),
        3,
        _bessel(1),
        "the third derivative at zero is zero, and loses digits nearby (measured on torch 1.11 to 2.15)",
    ),
    Composition(
        ("special.i0e", "ops.aten.special_i0e"),
        ("SpecialI0EBackward",),
        4,
        _bessel(0, scaled=True),
        "the fourth derivative loses digits near zero: see i1e",
    ),
    Composition(
        ("special.i1e", "ops.aten.special_i1e"),
        ("SpecialI1EBackward",),
        3,
        _bessel(1, scaled=True),
        "the third derivative loses digits near zero (measured on torch 1.11 to 2.15)",
    ),
)
