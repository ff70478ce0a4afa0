"""Forward mode without a jvp rule, on torch >= 2.0: the transpose of the backward.

A pullback is linear in its cotangents, so that differentiating it by them gives its transpose, the pushforward
(https://j-towns.github.io/2017/06/12/A-new-trick.html). Cost: two evaluations of the backward and one through it.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
import torch.func
from torch import Tensor
from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

from .._capabilities import NOT_TRANSPOSED, MistakenRule
from ._context import is_differentiable
from ._definition import backward_of, is_once_differentiable

_private: Any = torch._C._functorch


def pushed(
    definition: Any,
    primals: Sequence[Any],
    tangents: Sequence[Any],
    outputs: Sequence[Any],
    call: Callable[..., Any],
) -> list[Any]:
    """Tangents of the outputs; None for what is not differentiable."""
    if is_once_differentiable(backward_of(definition)):
        raise MistakenRule(NOT_TRANSPOSED.format(definition.__name__))
    moving = [i for i, t in enumerate(tangents) if t is not None]
    wanted = [n for n, x in enumerate(outputs) if is_differentiable(x)]
    if not wanted:
        return [None] * len(outputs)

    def chosen(*values: Tensor) -> tuple[Tensor, ...]:
        args = list(primals)
        for i, value in zip(moving, values):
            args[i] = value
        results = call(definition, tuple(args))
        flat = results if isinstance(results, (tuple, list)) else (results,)
        return tuple(flat[n] for n in wanted)

    def pull(*cotangents: Tensor) -> Any:
        return torch.func.vjp(chosen, *(primals[i] for i in moving))[1](cotangents)

    vectors = tuple(tangents[i] for i in moving)
    fixed = tuple(_wave(outputs[n]) for n in wanted)
    try:
        # at the fixed cotangents, which the result does not depend on but for a backward that is not linear
        gradients, transpose = torch.func.vjp(pull, *fixed)[:2]
        found = transpose(vectors)
    except RuntimeError as error:
        # the backward cannot be differentiated, or seen into; rows of it, which the autograd backend takes, or its
        # own error, which comes back from there
        raise MistakenRule(NOT_TRANSPOSED.format(definition.__name__)) from error
    if not _agree(fixed, found, gradients, vectors):
        raise MistakenRule(NOT_TRANSPOSED.format(definition.__name__))
    results: list[Any] = [None] * len(outputs)
    for n, tangent in zip(wanted, found):
        results[n] = tangent
    return results


def _wave(like: Tensor) -> Tensor:
    """A fixed tensor that no structure of a derivative is likely to cancel."""
    values = torch.cos(torch.arange(1, like.numel() + 1, device=like.device)).to(like.dtype).reshape(like.shape)
    # of the same layers as `like`
    return torch.zeros_like(like) + values


def _agree(
    fixed: Sequence[Tensor], pushed: Sequence[Tensor], pulled: Sequence[Tensor], vectors: Sequence[Tensor]
) -> bool:
    """<u, J t> = <J^T u, t>: what a backward computes out of autograd's sight is lost in its transpose."""
    with torch.no_grad():
        left = [_dot(u, t) for u, t in zip(fixed, pushed)]
        right = [_dot(g, t) for g, t in zip(pulled, vectors)]
        difference = (sum(dot for dot, _ in left) - sum(dot for dot, _ in right)).abs()
        scale = sum(size for _, size in left) + sum(size for _, size in right)
        eps = max(torch.finfo(x.dtype).eps for x in (*fixed, *vectors))
        return not _anywhere(difference > eps**0.5 * scale)


def _dot(first: Tensor, second: Tensor) -> tuple[Any, Any]:
    products = first.detach().conj() * second.detach()
    products = torch.real(products) if products.is_complex() else products
    products = products.float() if products.dtype in (torch.float16, torch.bfloat16) else products
    return products.sum(), products.abs().sum()


def _anywhere(flags: Tensor) -> bool:
    """Whether any of the numbers is true, under all the layers that they have."""
    if _private.peek_interpreter_stack() is None:
        return bool(flags.any())
    interpreter: Any = retrieve_current_functorch_interpreter()
    if interpreter.key() == _private.TransformType.Vmap:
        below = _private._unwrap_batched(flags, interpreter.level())[0]
    else:
        below = _private._unwrap_for_grad(flags, interpreter.level())
    with interpreter.lower():
        return _anywhere(below)
