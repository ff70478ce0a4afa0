"""Raise if a user's function closes over tensors that are differentiated or mapped.

Rules evaluate such functions outside of the transforms around them. A tensor of those transforms would be treated as a
constant, or as another batch.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from ..autograd.custom_rules import custom_vjp
from ..autograd.function import Function
from . import trees


def evaluated_alone(func: Callable[..., Any], *args: Any) -> Any:
    """The value for one sample; raises if it depends on more than the arguments. Transforms answer that error with a
    loop over samples on the autograd backend. No tensor is mapped there, and differentiated tensors raise again.
    """
    arguments, sample = trees.Arguments(args), _Found()
    _Sample.apply(sample, *arguments.tensors(args))
    probe = custom_vjp(func)
    probe.defvjp(lambda *args: (func(*args), None), lambda _, grad: (None,) * len(args))
    return probe(*arguments.filled(sample.tensors))


class _Found:
    """A holder of one value: a list would be flattened as a pytree."""

    tensors: Sequence[Tensor] = ()


class _Sample(Function):
    """The first sample as plain tensors, within any transforms."""

    @staticmethod
    def forward(found: _Found, *tensors: Tensor) -> Tensor:
        found.tensors = [x.detach() for x in tensors]
        return torch.zeros((), device="cpu")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return (None,) * ctx.count

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return torch.zeros((), device="cpu")

    @staticmethod
    def vmap(info: Any, in_dims: Any, found: _Found, *tensors: Tensor) -> Any:
        samples = [x if dim is None else _first(x, dim) for x, dim in zip(tensors, in_dims[1:])]
        return _Sample.apply(found, *samples), None


def _first(x: Tensor, dim: int) -> Tensor:
    if x.shape[dim]:
        return x.select(dim, 0)
    shape = list(x.shape)
    del shape[dim]
    return torch.zeros(shape, dtype=x.dtype, device=x.device)
