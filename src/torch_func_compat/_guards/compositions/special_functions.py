"""Special functions."""

from __future__ import annotations

import math
from typing import Any, Callable

import torch
from torch import Tensor

from ..._torch import facts
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


# The average of cos(z t) over t is sin(z) / z. Gauss's rule of eight points, two by two: exact to rounding up to z = 1.
_POINTS = (0.18343464249564980, 0.52553240991632899, 0.79666647741362674, 0.96028985649753623)
_WEIGHTS = (0.36268378337836198, 0.31370664587788729, 0.22238103445337447, 0.10122853629037626)


def sine_quotient(z: Tensor) -> Tensor:
    """sin(z) / z, which is an integral near zero, where derivatives of the quotient are 0 / 0."""
    is_small = z.detach().abs() < 1
    points, weights = torch.tensor((_POINTS, _WEIGHTS), dtype=z.dtype, device=z.device)
    near = (z.masked_fill(~is_small, 0).unsqueeze(-1) * points).cos().matmul(weights)
    far = z.masked_fill(is_small, 1)
    return torch.where(is_small, near, far.sin() / far)


def _sinc(input: Any, *, out: Any = None) -> Any:
    is_known = isinstance(input, Tensor) and (input.is_floating_point() or input.is_complex()) and out is None
    return sine_quotient(input * math.pi) if is_known else NotImplemented


ROWS: tuple[Composition, ...] = (
    Composition(
        ("sinc", "special.sinc", "Tensor.sinc", "ops.aten.sinc", "ops.aten.special_sinc"),
        ("SincBackward",),
        1 if facts.TORCH < (1, 11) else 2,
        _sinc,
        "the second derivative at zero is zero or not a number, and further ones lose digits nearby (measured on torch "
        "1.8 to 2.15); the first one is not a number on torch 1.8",
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
        (
            *("i0", "special.i0", "Tensor.i0", "special.modified_bessel_i0"),
            *("ops.aten.i0", "ops.aten.special_i0", "ops.aten.special_modified_bessel_i0"),
        ),
        ("I0Backward",),
        4,
        _bessel(0),
        "the fourth derivative at zero is zero, and loses digits nearby: see i1",
    ),
    Composition(
        (
            *("special.i1", "special.modified_bessel_i1"),
            *("ops.aten.special_i1", "ops.aten.special_modified_bessel_i1"),
        ),
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
