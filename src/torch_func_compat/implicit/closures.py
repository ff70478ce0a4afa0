"""Functions of the user's may close over tensors, but not over such as are differentiated or mapped.

Rules evaluate them where the transforms around are not there. A tensor of those would be taken for a constant there, or
for another batch.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from ..autograd.custom_rules import custom_vjp
from ..autograd.function import Function
from . import trees


def evaluated_alone(func: Callable[..., Any], *args: Any) -> Any:
    """The value for one sample, with an error where the arguments are not all that it depends on.

    The error is one that transforms answer with a loop over samples on the autograd backend: mapped tensors are none
    there, and tensors that are differentiated raise there, too.
    """
    arguments, sample = trees.Arguments(args), _Found()
    _Sample.apply(sample, *arguments.tensors(args))
    probe = custom_vjp(func)
    probe.defvjp(lambda *args: (func(*args), None), lambda _, grad: (None,) * len(args))
    return probe(*arguments.filled(sample.tensors))


class _Found:
    """No list, which would be taken apart and put together again."""

    tensors: Sequence[Tensor] = ()


class _Sample(Function):
    """Find the first sample: plain tensors, whatever transforms are around."""

    @staticmethod
    def forward(found: _Found, *tensors: Tensor) -> Tensor:
        found.tensors = [x.detach() for x in tensors]
        return torch.zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.count = len(inputs)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return (None,) * ctx.count

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return torch.zeros(())

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
