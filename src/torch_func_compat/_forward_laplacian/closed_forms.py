"""Value, first and second derivative of the most common operations.

They save two passes of torch.autograd each; every other elementwise operation has its derivatives from there.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor


class Second(NamedTuple):
    """A second derivative.

    Attributes
    ----------
    factor : Tensor
        The derivative, or what the first derivative is to be multiplied by.
    of_first : bool
        Whether it is the latter, which needs no square of a Jacobian, that may leave the range of its dtype.
    wide : bool
        Whether the factor may be so large or small that it comes before the sum over the columns.
    """

    factor: Tensor
    of_first: bool = False
    wide: bool = False


# The second derivative is None where it is zero everywhere.
Derivatives = Tuple[Tensor, Tensor, Optional[Second]]


def _tanh(x: Tensor) -> Derivatives:
    y = torch.tanh(x)
    first = 1 - y * y
    return y, first, Second(-2 * y, True)


def _sigmoid(x: Tensor) -> Derivatives:
    y = torch.sigmoid(x)
    first = y * (1 - y)
    return y, first, Second(1 - 2 * y, True)


def _silu(x: Tensor) -> Derivatives:
    s = torch.sigmoid(x)
    slope = s * (1 - s)
    return x * s, s + x * slope, Second(slope * (2 + x * (1 - 2 * s)))


def _exp(x: Tensor) -> Derivatives:
    y = torch.exp(x)
    return y, y, Second(torch.ones_like(y), True)


def _log(x: Tensor) -> Derivatives:
    first = 1 / x
    return torch.log(x), first, Second(-first, True, True)


def _sin(x: Tensor) -> Derivatives:
    y = torch.sin(x)
    return y, torch.cos(x), Second(-y)


def _cos(x: Tensor) -> Derivatives:
    y = torch.cos(x)
    return y, -torch.sin(x), Second(-y)


def _square(x: Tensor) -> Derivatives:
    return x * x, 2 * x, Second(torch.full_like(x, 2))


def _sqrt(x: Tensor) -> Derivatives:
    y = torch.sqrt(x)
    first = 0.5 / y
    return y, first, Second(-0.5 / x, True, True)


def _relu(x: Tensor) -> Derivatives:
    return torch.relu(x), (x > 0).to(x.dtype), None


CLOSED: dict[str, Callable[[Tensor], Derivatives]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "silu": _silu,
    "exp": _exp,
    "log": _log,
    "sin": _sin,
    "cos": _cos,
    "square": _square,
    "sqrt": _sqrt,
    "relu": _relu,
}
