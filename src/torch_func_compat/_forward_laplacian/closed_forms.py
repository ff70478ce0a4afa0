"""Value, first and second derivative of the most common operations.

They save two passes of torch.autograd each; every other elementwise operation has its derivatives from there.
"""

from __future__ import annotations

from typing import Callable, Optional, Tuple

import torch
from torch import Tensor

# The second derivative is None where it is zero everywhere.
Derivatives = Tuple[Tensor, Tensor, Optional[Tensor]]


def _tanh(x: Tensor) -> Derivatives:
    y = torch.tanh(x)
    first = 1 - y * y
    return y, first, -2 * y * first


def _sigmoid(x: Tensor) -> Derivatives:
    y = torch.sigmoid(x)
    first = y * (1 - y)
    return y, first, first * (1 - 2 * y)


def _silu(x: Tensor) -> Derivatives:
    s = torch.sigmoid(x)
    slope = s * (1 - s)
    return x * s, s + x * slope, slope * (2 + x * (1 - 2 * s))


def _exp(x: Tensor) -> Derivatives:
    y = torch.exp(x)
    return y, y, y


def _log(x: Tensor) -> Derivatives:
    first = 1 / x
    return torch.log(x), first, -first * first


def _sin(x: Tensor) -> Derivatives:
    y = torch.sin(x)
    return y, torch.cos(x), -y


def _cos(x: Tensor) -> Derivatives:
    y = torch.cos(x)
    return y, -torch.sin(x), -y


def _square(x: Tensor) -> Derivatives:
    return x * x, 2 * x, torch.full_like(x, 2)


def _sqrt(x: Tensor) -> Derivatives:
    y = torch.sqrt(x)
    first = 0.5 / y
    return y, first, -0.5 * first / x


def _reciprocal(x: Tensor) -> Derivatives:
    y = 1 / x
    first = -y * y
    return y, first, -2 * y * first


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
    "reciprocal": _reciprocal,
    "relu": _relu,
}
