"""The user's solvers, which may leave torch: called with one sample at a time, without a graph."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from .._torch.grad_mode import no_grad
from ..autograd.function import Function
from . import trees
from .vectors import Layout


class Outside(Function):
    """``run(tensors)``, a tuple of tensors, without a derivative; under vmap one sample after another."""

    @staticmethod
    def forward(run: Callable[[Sequence[Tensor]], tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
        with no_grad():
            return run(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError("a solver cannot be differentiated: its solution is, by the equations")


def name_of(func: Any) -> str:
    """The name of a callable, for messages."""
    return str(getattr(func, "__name__", None) or repr(func))


def returned(tree: Any, layout: Layout, name: str) -> tuple[Tensor, ...]:
    """A copy of the unknown that a solver returned; numpy arrays and numbers are accepted."""
    leaves, spec = trees.flatten(tree)
    if spec != layout.spec:
        raise TypeError(f"expected {name} to return the structure of {layout.what}, {layout.spec}, got {spec}")
    found = []
    for leaf, shape, dtype in zip(leaves, layout.shapes, layout.dtypes):
        x = torch.as_tensor(leaf, dtype=dtype, device=layout.device).detach()
        if tuple(x.shape) != shape:
            raise ValueError(f"expected {name} to return the shape of {layout.what}, {shape}, got {tuple(x.shape)}")
        found.append(x.clone())
    return tuple(found)
