"""Whether a linear map and what should be its transpose are transposes of each other."""

from __future__ import annotations

from typing import Any, Sequence

import torch
from torch import Tensor

from .._torch import facts, tensors
from .._torch.grad_mode import no_grad

_private: Any = None
if facts.has("torch_func"):
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    _private = torch._C._functorch


def wave(like: Tensor) -> Tensor:
    """A probe of the shape, the dtype and the layers of `like`."""
    return torch.zeros_like(like) + tensors.wave(like)


def agree(
    fixed: Sequence[Tensor],
    pushed: Sequence[Tensor],
    pulled: Sequence[Tensor],
    vectors: Sequence[Tensor],
    outputs: Sequence[Tensor] = (),
    noise: float = 0.0,
) -> bool:
    """<u, J t> = <J^T u, t>: what a backward computes out of autograd's sight is lost in its transpose.

    Rounding errors of the size of those of `outputs` are allowed for, or of `noise`.
    """
    with no_grad():
        left = [_dot(u, t) for u, t in zip(fixed, pushed)]
        right = [_dot(g, t) for g, t in zip(pulled, vectors)]
        difference = (sum(dot for dot, _ in left) - sum(dot for dot, _ in right)).abs()
        scale = sum(size for _, size in left) + sum(size for _, size in right)
        eps = max(torch.finfo(x.dtype).eps for x in (*fixed, *vectors))
        size = sum(_dot(u, output)[1] for u, output in zip(fixed, outputs))
        return not _anywhere(difference > eps**0.5 * scale + 64 * eps * size + noise)


def _dot(first: Tensor, second: Tensor) -> tuple[Any, Any]:
    products = first.detach().conj() * second.detach()
    products = torch.real(products) if products.is_complex() else products
    products = products.float() if products.dtype in (torch.float16, torch.bfloat16) else products
    return products.sum(), products.abs().sum()


def _anywhere(flags: Tensor) -> bool:
    """Whether any of the numbers is true, under all the layers that they have."""
    if _private is None or _private.peek_interpreter_stack() is None:
        return bool(flags.any())
    interpreter: Any = retrieve_current_functorch_interpreter()
    if interpreter.key() == _private.TransformType.Vmap:
        below = _private._unwrap_batched(flags, interpreter.level())[0]
    else:
        below = _private._unwrap_for_grad(flags, interpreter.level())
    with interpreter.lower():
        return _anywhere(below)
