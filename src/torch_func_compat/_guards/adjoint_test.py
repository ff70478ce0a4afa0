"""The adjoint test: whether two linear maps are transposes of each other."""

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


def probes(outputs: Sequence[Tensor], pushed: Sequence[Tensor | None] = ()) -> list[Tensor]:
    """Cotangents that give all outputs the same weight: a mistake in a small one is not lost beside a large one.

    The weights come from the tangents of the outputs where these are known, else from the outputs.
    """
    tangents = pushed or [None] * len(outputs)
    with no_grad():
        return [_probe(output.detach(), tangent) for output, tangent in zip(outputs, tangents)]


def _probe(output: Tensor, tangent: Tensor | None) -> Tensor:
    fixed = wave(output)
    if not output.numel() or not (output.is_floating_point() or output.is_complex()):
        return fixed
    sizes = [_float(x.detach().abs()).max() for x in (tangent, output) if x is not None]
    size = torch.ones_like(sizes[0])
    for other in reversed(sizes):  # the tangent's, or where that is zero, the output's
        size = torch.where(other > 0, other.to(size), size)
    probe: Tensor = fixed / size.clamp(min=torch.finfo(output.dtype).tiny ** 0.5)
    return probe.to(output.dtype)


def _float(tensor: Tensor) -> Tensor:
    """In a precision that every torch computes in."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def agree(
    fixed: Sequence[Tensor],
    pushed: Sequence[Tensor],
    pulled: Sequence[Tensor],
    vectors: Sequence[Tensor],
    outputs: Sequence[Tensor] = (),
    noise: float = 0.0,
) -> bool:
    """Whether <u, J t> = <J^T u, t>. The transpose lacks what a backward computes without autograd.

    The tolerance includes rounding errors as large as those of `outputs`, and `noise`.
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
    products = _float(products)
    return products.sum(), products.abs().sum()


def _anywhere(flags: Tensor) -> bool:
    """Whether any flag is true, below all levels of functorch."""
    if _private is None or _private.peek_interpreter_stack() is None:
        return bool(flags.any())
    interpreter: Any = retrieve_current_functorch_interpreter()
    if interpreter.key() == _private.TransformType.Vmap:
        below = _private._unwrap_batched(flags, interpreter.level())[0]
    else:
        below = _private._unwrap_for_grad(flags, interpreter.level())
    with interpreter.lower():
        return _anywhere(below)
