"""Value, first and second derivative of the most common operations.

They save two passes of torch.autograd each; every other elementwise operation has its derivatives from there.
"""

from __future__ import annotations

from typing import Callable, Optional, Tuple, Union

import torch
from torch import Tensor

# None where it is zero everywhere; two factors where their product may leave the range of a dtype that its product with
# two Jacobians is in, as 1 / x^2 does for large and small x.
Second = Union[Tensor, Tuple[Tensor, Tensor]]
Derivatives = Tuple[Tensor, Tensor, Optional[Second]]


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
    return torch.log(x), first, (-first, first)


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
    return y, first, (first, -0.5 / x)


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
